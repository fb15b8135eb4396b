"""Collections: inputs, corpora, runs, workers, commands. Only one module of these imports Ray."""

if __name__ != "maskmill.pipelines":
    raise ImportError("import maskmill.pipelines, not pipelines")  # no file is loaded under two names
