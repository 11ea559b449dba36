"""Loading the pack loads nothing that is not needed until a node is used."""

import pytest

pytest.importorskip("comfy", reason="needs ComfyUI: python3 dev.py test")

from pack.devtools.startup import import_alone


def test_only_the_pack_itself_is_imported():
    modules, *_ = import_alone()
    own = {name.removeprefix("reg_pack.") for name in modules if name.split(".")[0] == "reg_pack"}
    assert {"nodes.guidance", "nodes.report", "guiders.run", "reg.profile"} <= own
    assert not {name for name in own if name.split(".")[0] in ("lab", "research", "devtools", "tests")}
    assert {name for name in own if name.split(".")[0] == "demo"} <= {"demo", "demo.world"}
    others = {name.split(".")[0] for name in modules} - {"reg_pack"}
    assert others <= {"comfy", "comfy_api", "comfy_execution", "comfy_extras"}
