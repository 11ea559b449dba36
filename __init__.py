"""ComfyUI-REG: rectified gradient guidance for any model ComfyUI can load."""

from comfy_api.latest import ComfyExtension, io

from .nodes.autoguidance import REGAutoGuider
from .nodes.demo import REGDemoModel, REGDemoPrompt
from .nodes.guidance import REGGuider, REGModel, REGSampler
from .nodes.imagenet import REGDDPM, REGDiTLoader, REGEDM2Loader, REGImageNetClass
from .nodes.pilot import REGPilot
from .nodes.preset import REGLoadPreset
from .nodes.profile import REGCalibrate, REGLoadProfile, REGSaveProfile
from .nodes.report import REGReport
from .nodes.schedule import REGSchedule
from .nodes.toy import REGToy, REGToyModel, REGToyPlot

WEB_DIRECTORY = "web"  # the nodes' help pages are in web/docs


class REGExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            REGModel,
            REGGuider,
            REGAutoGuider,
            REGSampler,
            REGSchedule,
            REGCalibrate,
            REGSaveProfile,
            REGLoadProfile,
            REGReport,
            REGPilot,
            REGLoadPreset,
            REGToy,
            REGToyModel,
            REGToyPlot,
            REGDemoModel,
            REGDemoPrompt,
            REGDiTLoader,
            REGEDM2Loader,
            REGImageNetClass,
            REGDDPM,
        ]


async def comfy_entrypoint() -> REGExtension:
    return REGExtension()
