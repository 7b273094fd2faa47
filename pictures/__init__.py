"""Results for eyes: overlays, label pictures, reports."""
