"""Collections: sources, shards, the run, reports. Knows `engine` and `model`; one module imports Ray."""

if __name__ != "maskmill.pipelines":
    raise ImportError("import maskmill.pipelines, not pipelines")  # no file is loaded under two names
