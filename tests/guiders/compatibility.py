"""ComfyUI's own patches beside REG, and what else people use: what the tests here show, and what `docs/compatibility.md` says.

`python3 tests/guiders/compatibility.py` writes the page from this table; a test fails when the page is another.
"""

from dataclasses import dataclass, field
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"

ITS_TERM = "the guidance as the patch makes it"
PLUS_ITS_TERM = "CFG and the patch's own term, together"
ALL_ITS_WORK = "CFG and all that the patch adds to the conditional prediction"
WITHIN = "CFG, by the Jacobian of the network with the patch in it"


@dataclass(frozen=True)
class Neighbour:
    """One node of ComfyUI's, with the inputs that it is tested with."""

    name: str  # as people call it
    node: str  # module:class in comfy_extras
    inputs: dict = field(default_factory=dict)
    rectified: str = ITS_TERM
    families: tuple[str, ...] = ("SD15",)
    size: int = 8  # of the latent
    steps: int = 3  # of the runs
    note: str = ""  # for the page
    smooth: bool = True  # is the network differentiable with it?


DIFFUSION_AND_FLOW = ("SD15", "SD3")

GUIDANCE = [
    Neighbour(
        "APG (Adaptive Projected Guidance)",
        "nodes_apg:APG",
        {"eta": 0.5, "norm_threshold": 5.0, "momentum": 0.0},
        families=DIFFUSION_AND_FLOW,
        note="It changes D_c on its way to the guidance rule; REG measures from the D_c that the model gave. Its "
        "momentum is kept in the patched model and outlives a run, with REG and without.",
    ),
    Neighbour("CFG-Zero*", "nodes_cfg:CFGZeroStar", families=DIFFUSION_AND_FLOW),
    Neighbour("CFGNorm", "nodes_cfg:CFGNorm", {"strength": 0.9}, families=DIFFUSION_AND_FLOW),
    Neighbour("CFGNorm, pre_cfg", "nodes_cfg:CFGNorm", {"strength": 0.9, "pre_cfg": True}, families=DIFFUSION_AND_FLOW),
    Neighbour("TCFG (Tangential Damping)", "nodes_tcfg:TCFG", families=DIFFUSION_AND_FLOW),
    Neighbour("Mahiro (Positive-Biased Guidance)", "nodes_mahiro:Mahiro", families=DIFFUSION_AND_FLOW),
    Neighbour("RescaleCFG", "nodes_model_advanced:RescaleCFG", {"multiplier": 0.7}),
    Neighbour(
        "FreSca",
        "nodes_fresca:FreSca",
        {"scale_low": 1.0, "scale_high": 1.5, "freq_cutoff": 2},
        families=DIFFUSION_AND_FLOW,
        note="It changes D_c on its way to the guidance rule; REG measures from the D_c that the model gave.",
    ),
    Neighbour(
        "PAG (Perturbed-Attention Guidance)",
        "nodes_pag:PerturbedAttentionGuidance",
        {"scale": 2.0},
        PLUS_ITS_TERM,
        note="At cfg 1 there is no unconditional pass, and REG leaves PAG's term as it is.",
    ),
    Neighbour(
        "SAG (Self-Attention Guidance)",
        "nodes_sag:SelfAttentionGuidance",
        {"scale": 0.8, "blur_sigma": 2.0},
        PLUS_ITS_TERM,
    ),
    Neighbour(
        "SLG (Skip Layer Guidance, SD3)",
        "nodes_sd3:SkipLayerGuidanceSD3",
        {"layers": "0", "scale": 2.0, "start_percent": 0.0, "end_percent": 1.0},
        PLUS_ITS_TERM,
        families=("SD3",),
    ),
    Neighbour(
        "SLG (Skip Layer Guidance, DiT)",
        "nodes_slg:SkipLayerGuidanceDiT",
        {"double_layers": "", "single_layers": "0", "scale": 2.0, "start_percent": 0.0, "end_percent": 1.0},
        PLUS_ITS_TERM,
        families=("AuraFlow",),
    ),
    Neighbour(
        "SLG (simple)",
        "nodes_slg:SkipLayerGuidanceDiTSimple",
        {"double_layers": "0", "single_layers": "", "start_percent": 0.0, "end_percent": 1.0},
        families=("SD3",),
        note="It evaluates the two prompts one by one, so REG costs one more pass.",
    ),
    Neighbour("Epsilon Scaling", "nodes_eps:EpsilonScaling", {"scaling_factor": 1.01}, ALL_ITS_WORK),
    Neighbour(
        "TSR (Temporal Score Rescaling)",
        "nodes_eps:TemporalScoreRescaling",
        {"tsr_k": 0.9, "tsr_sigma": 1.0},
        ALL_ITS_WORK,
    ),
    Neighbour(
        "CFG Override", "nodes_custom_sampler:CFGOverride", {"cfg": 2.5, "start_percent": 0.0, "end_percent": 1.0}
    ),
]

NETWORK = [
    Neighbour(
        "NAG (Normalized Attention Guidance)",
        "nodes_nag:NAGuidance",
        {"nag_scale": 3.0, "nag_alpha": 0.5, "nag_tau": 1.5},
        WITHIN,
        note="It acts where both prompts are in one batch. REG finds it and keeps them together: its extra evaluation "
        "is of both, and costs twice.",
    ),
    Neighbour("FreeU", "nodes_freelunch:FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2}, WITHIN),
    Neighbour("FreeU V2", "nodes_freelunch:FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}, WITHIN),
    Neighbour(
        "HyperTile",
        "nodes_hypertile:HyperTile",
        {"tile_size": 32, "swap_size": 3, "max_depth": 0, "scale_depth": False},
        WITHIN,
        size=16,
        note="It draws its tiles in every evaluation. REG's extra evaluations draw the same ones, and leave later "
        "draws as they are.",
    ),
    Neighbour(
        "ToMe (token merging)",
        "nodes_tomesd:TomePatchModel",
        {"ratio": 0.3},
        WITHIN,
        note="Its draws as HyperTile's. What it merges jumps with the latent, which a difference sees and the reverse "
        "pass does not: leave the estimator at auto. With difference, or with the ratio, REG says so.",
        smooth=False,
    ),
]

CACHES = [
    Neighbour(
        "EasyCache",
        "nodes_easycache:EasyCacheNode",
        {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
        "CFG; on steps from the cache, with the last measurement",
        steps=5,
        note="There the network is not asked, and its Jacobian cannot be had: REG finds the cache, says so, and "
        "measures on the other steps, past the cache. What the cache skips does not change.",
    ),
    Neighbour(
        "LazyCache",
        "nodes_easycache:LazyCacheNode",
        {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
        "CFG, on the steps that are not from the cache",
        steps=5,
        note="It repeats whole guided steps, and so what REG did in them.",
    ),
]

LORA_HOOKS = Neighbour(
    "LoRA hooks",
    "nodes_hooks:CreateHookLora",
    {},
    WITHIN,
    note="The Jacobian is the one under the prompt's own LoRA. A prompt whose parts have different LoRAs is measured "
    "with estimator = difference, and REG says so.",
)

BLENDED = "CFG, by the Jacobian of the prompt's parts as ComfyUI blends them"
STEPS = "the steps of the run that are in the range"


@dataclass(frozen=True)
class Use:
    """What people use besides patches of the guidance: in prompts, as guiders, in runs."""

    name: str
    rectified: str
    note: str = ""  # for the page
    works: str = "yes"
    refuses: str = "nothing"


PROMPTS = [
    Use("LoRA as patched weights", WITHIN),
    Use("ControlNet, T2I-Adapter, chains of them", WITHIN),
    Use(
        "IP-Adapter and other attention patches",
        WITHIN,
        "Each prompt keeps its place in the batch (`cond_or_uncond`) in REG's extra evaluations, so that it meets its own "
        "pictures there.",
    ),
    Use("GLIGEN", WITHIN),
    Use("unCLIP (pictures in the prompt)", WITHIN),
    Use("inpaint models", WITHIN),
    Use("model sampling nodes (shifts, v, x0, LCM, zero SNR, EDM)", "CFG, with α and the range of the new schedule"),
    Use("areas, masks, default prompts", BLENDED),
    Use("prompts of a part of the schedule", BLENDED, "Of those that take part in the step."),
    Use(
        "context windows",
        "CFG, by the Jacobian of what the windows are fused to",
        "Nothing can be had ahead there: measuring with a gradient costs one more conditional evaluation.",
    ),
    Use(
        "batches, odd sizes, a prompt or a noise level for each sample",
        "each sample by itself",
        refuses="a latent with other channels than the model's",
    ),
    Use(
        "video with sound, given frames",
        "CFG, over all parts of the latent",
        refuses="REG Calibrate, where there is sound",
    ),
]

GUIDERS = [
    Use("CFG Guider", "CFG"),
    Use("Basic Guider", "nothing: one prompt has no guidance, and REG says so", works="no"),
    Use("CFG Override", "CFG at the overridden scale; steps at cfg 1 stay as they are"),
    Use(
        "Dual CFG Guider, regular and nested",
        "all that leads from cond1's prediction to the guider's",
        "The ratio compares with the negative; regular at cfg_cond2_negative = 1, where that is not evaluated, with cond2.",
    ),
    Use("Dual Model CFG Guider", "CFG", "The ratio compares with the Jacobian of the negative's model."),
    Use(
        "Perp-Neg Guider, Perp-Neg",
        "Perp-Neg's guidance",
        "With the guider, the ratio compares with the empty prompt, which that guidance starts from; with the older node, "
        "with the negative.",
    ),
    Use("Video Linear and Triangle CFG Guidance", "CFG, each frame at its scale"),
]

RUNS = [
    Use(
        "every sampler in ComfyUI's list",
        "each evaluation of a step",
        "CFG++ samplers see the true unconditional prediction, and SDE samplers draw the noise that they draw without "
        "REG. `measure every` counts steps: of a step's evaluations one is measured, at 1 all of them; all are rectified.",
    ),
    Use(
        "noise masks, soft masks, Differential Diffusion",
        "the whole prediction",
        "Only the part of the latent that is free to change counts in what is measured. ComfyUI puts the given part of the "
        "picture back afterwards.",
    ),
    Use("AR Video's sampler", "nothing: it takes no cfg but 1, and REG says so", works="no"),
    Use("img2img, partial denoise", STEPS),
    Use(
        "Split Sigmas, KSampler (Advanced), base and refiner",
        STEPS,
        "`start_percent` and `end_percent` are of the model's whole schedule in every stage, as everywhere in ComfyUI. A "
        "stage begins by measuring anew.",
    ),
]


@dataclass(frozen=True)
class Kind:
    """A kind of patch that other packs have."""

    name: str
    example: str  # where people meet it
    sees: str  # what REG sees of it
    does: str  # what REG does
    patches: tuple[str, ...]  # in `neighbours.py`, which the tests try


SAME_WAY = "makes its own evaluations by the patch's own function, with the same random numbers"
AS_IT_IS = "says so in one sentence, and leaves the guidance as it is for the rest of the run"

KINDS = [
    Kind(
        "evaluates the prompts in ComfyUI's place, with options of its own",
        "presets of Automatic CFG, SLG (simple)",
        "the function in ComfyUI's slot, and whether it gives the same predictions when REG calls it",
        SAME_WAY,
        ("own_calc",),
    ),
    Kind(
        "hands the network changed copies of the prompts, fixed or with noise",
        "CADS in ComfyUI-ppm",
        "the same; a prompt is known by its place and by the prediction it gave",
        SAME_WAY,
        ("copies_of_conds", "noisy_copies_of_conds"),
    ),
    Kind(
        "tells the prompts by the halves of the batch",
        "NAG",
        "a prompt alone gives another prediction than in the batch",
        "keeps the batch together in its own evaluations, which then cost as much as a step",
        ("half_of_the_batch",),
    ),
    Kind(
        "writes into the predictions in place",
        "pre-CFG patches of Pre CFG, Skimmed CFG",
        "the predictions as the model made them, copied before any patch",
        "measures from those; what the patch does to them is part of the guidance",
        ("in_place_pre_cfg",),
    ),
    Kind(
        "evaluates the prompts within its own guidance rule",
        "presets of Automatic CFG",
        "predictions of zeros, or none, where the prompts should be",
        AS_IT_IS,
        ("conds_not_evaluated",),
    ),
    Kind(
        "changes predictions in a way that cannot be repeated",
        "patches that count their calls, or answer from memory",
        "at the same latent REG's own evaluation gives something else",
        AS_IT_IS,
        ("counts_its_calls",),
    ),
    Kind(
        "caches the network's work, under any name, by prompt or for all",
        "TeaCache, first-block caches, EasyCache",
        "fewer of the network's blocks run than in the run's first evaluation",
        "measures on the other steps, past the cache; on cached steps the last measurement stands",
        ("cache_around_the_network", "cache_of_one_residual", "cache_around_the_model"),
    ),
    Kind(
        "is a rule of its own that tells its hooks little",
        "guiders of other packs",
        "what the hooks are told; a scale that is not told is not asked for",
        "rectifies what the guider ends with; a schedule sets the guider's own cfg",
        ("ThinRule",),
    ),
    Kind(
        "copies the step's options, deeply or into a file",
        "Pre CFG PAG, Pre CFG zero attention",
        "nothing: the copies hold no model, no guider and no run",
        "goes on as always, in either order of the nodes",
        ("deep_copies",),
    ),
    Kind(
        "has weights of its own kind, made anew for each call",
        "GGUF, quantised loaders",
        "tensors of other classes, and layers that make their weights",
        "takes the gradient all the same; no weight that was made is kept for it",
        ("tensor_subclass_weights",),
    ),
    Kind(
        "fails",
        "rules that do not know a latent of this shape",
        "the exception, on its way",
        "nothing: it is raised from the same place, and nothing of REG's is left behind",
        ("fails_in_the_third_step",),
    ),
]

HEAD = """# REG beside other nodes

[日本語](compatibility.ja.md)

REG is applied last. Whatever the order of the nodes, it comes after every other patch of the guidance, once per step:

    D_reg = D_c + (1 − strength) g + strength R(g),    g = D_guided − D_c

D_guided is the prediction that all the other patches made, D_c the model's own for the positive prompt. With strength
0 the picture is the one without REG, bit for bit. The patches keep their order among each other.

Rows are tested with ComfyUI's own nodes: against the Jacobian of the patched model, computed without REG, both by the
reverse pass and by differences, and against the ratio's number from differences; in both node orders, which must give the
same picture; and at a strength near 0, where the other patch must act as it does alone.

| patch | works | what is rectified | order matters | refuses |
|---|---|---|---|---|
"""

MORE = """
## In prompts and networks

What follows is tested against single steps and whole runs written out by hand, with all rectifications, by the reverse
pass and by differences (`tests/guiders/test_additions.py`, `test_added_networks.py`, `test_guiders.py`,
`test_samplers.py`). Model families have [a page of their own](families.md).

| in a prompt or a network | works | what is rectified | refuses |
|---|---|---|---|
{prompts}
## Guiders

| guider | works | what is rectified | refuses |
|---|---|---|---|
{guiders}
## Samplers and runs

| in a run | works | what is rectified | refuses |
|---|---|---|---|
{runs}"""

OF_A_KIND = """
## Patches of other packs, by their kind

REG does not know other packs by name. It looks at what their patches do, and takes a difference only between
evaluations that were made the same way: in the first step that it measures, one evaluation more than it needs sees
whether REG gets what ComfyUI got. Each kind is tested with a small patch of its own
(`tests/guiders/test_neighbours.py`): what is rectified, in numbers; and that with a strength near 0 the patch acts as it
does alone.

| a patch that … | where people meet it | what REG sees | what REG does |
|---|---|---|---|
{kinds}"""

TAIL = """
## What to know

{notes}

With REG AutoGuider, patches on `model` act on it alone, and patches on `weak_model` on that one. SAG and NAG work on the
negative prompt's pass: there they need a negative. SLG (simple) does not act there, as in ComfyUI's own guiders of two
models or three prompts.

A REG Schedule takes the place of CFG Override. REG Model twice in a chain: the last one counts. REG Model and REG
Sampler in one run: the one on the model counts, and REG says so.
"""


def page() -> str:
    """The page, from the tables."""
    neighbours = [*GUIDANCE, *NETWORK, LORA_HOOKS, *CACHES]
    rows = "".join(f"| {n.name} | yes | {n.rectified} | no | nothing |\n" for n in neighbours)
    more = MORE.format(prompts=table(PROMPTS), guiders=table(GUIDERS), runs=table(RUNS))
    kinds = "".join(f"| {k.name} | {k.example} | {k.sees} | {k.does} |\n" for k in KINDS)
    everything = [*neighbours, *PROMPTS, *GUIDERS, *RUNS]
    notes = [f"- **{one.name}**: {one.note}" for one in everything if one.note]
    return HEAD + rows + more + OF_A_KIND.format(kinds=kinds) + TAIL.format(notes="\n".join(notes))


def table(rows: list[Use]) -> str:
    return "".join(f"| {one.name} | {one.works} | {one.rectified} | {one.refuses} |\n" for one in rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
