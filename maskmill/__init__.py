"""maskmill: photographs in, an SA-1B-style corpus of segmentation masks out.

    from maskmill import Corpus, GeneratorConfig, MaskGenerator, View, load_sam, open_image

    records = MaskGenerator(load_sam("nano")).generate(open_image("photo.jpg"))
    for row in Corpus("corpus").rows(status="ok", view=View(min_area=100)):
        ...

These are the public names. Each is imported when it is first used, so that `import maskmill` costs nothing,
and reading a corpus loads neither torch nor Ray. What else outside code may use has a home of its own:
`maskmill.engine`, `maskmill.model`, `maskmill.pipelines.torch_dataset`.
"""

from __future__ import annotations

from os.path import dirname, isdir, join
from typing import TYPE_CHECKING

if not isdir(join(dirname(__file__), "engine")):  # noqa: PTH112, PTH118, PTH120  (pathlib takes time to load)
    raise ImportError(
        f"{__file__}: the symbolic links beside it, to engine, model, pipelines and configs, are missing: "
        "this tree was unpacked without them; clone the repository, or install a wheel (pip install .)"
    )

if TYPE_CHECKING:
    from .engine.config import GeneratorConfig
    from .engine.generator import MaskGenerator
    from .model.checkpoints.loading import load_sam
    from .pipelines.corpus.reader import Corpus
    from .pipelines.corpus.views import View
    from .pipelines.inputs.reader import open_image
else:
    _HOMES = {
        "Corpus": ".pipelines.corpus.reader",
        "GeneratorConfig": ".engine.config",
        "MaskGenerator": ".engine.generator",
        "View": ".pipelines.corpus.views",
        "load_sam": ".model.checkpoints.loading",
        "open_image": ".pipelines.inputs.reader",
    }

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_HOMES[name], __name__), name)


__version__ = "0.1.0"
__all__ = ["Corpus", "GeneratorConfig", "MaskGenerator", "View", "__version__", "load_sam", "open_image"]


def __dir__() -> list[str]:
    return sorted(__all__)
