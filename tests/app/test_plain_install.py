"""Without an extra: what people do with a trained model needs nothing that only training needs."""

import subprocess
import sys

CODE = """
import sys
sys.modules.update(dict.fromkeys(["accelerate", "datasets", "evaluate", "gradio", "ray"]))  # as if not installed
import maftplus.app.segmenting, maftplus.app.models, maftplus.deploy.exported, maftplus.deploy.handler
"""


def test_segmenting_and_exported_models_need_no_extra():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
