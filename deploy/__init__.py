"""For a service: a model as a graph for another runtime, the stand-in that loads it, the endpoint, the precision."""
