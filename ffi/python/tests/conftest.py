"""Where the library is: GRADUS_LIBRARY, or the build of this workspace, if the package was not installed."""

import os
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
BUILT = HERE.parents[2] / "target" / "release" / "libgradus_c.so"

try:
    import gradus  # noqa: F401
except ImportError:
    sys.path.insert(0, str(HERE.parent / "src"))
    if "GRADUS_LIBRARY" not in os.environ and BUILT.exists():
        os.environ["GRADUS_LIBRARY"] = str(BUILT)
    for name in [name for name in sys.modules if name.partition(".")[0] == "gradus"]:
        del sys.modules[name]
sys.path.insert(0, str(HERE))
