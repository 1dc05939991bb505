"""The steps of examples/hopper_matmul multiply, on the emulator and on a Hopper GPU where there is one, and what
docs/hopper-matmul.md says of them is true."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator

import emulated
import examples_library
import machine_code
import pytest
import torch
from dropped_statements import Site
from examples_library import FOLDER, ROOT, STEPS, Library, multiples, steps
from torch import Tensor

from warpwright import bench
from warpwright.testing import Sample
from warpwright.testing.compare import Expected

PAGE = (ROOT / "docs" / "hopper-matmul.md").read_text()
NVCC = emulated.build_script().find_nvcc()

#: m, n, k: one element; less than a tile; more steps of k than there are stages; past a tile in each dimension.
SIZES = [(1, 1, 1), (5, 8, 8), (67, 45, 200), (131, 137, 72)]
#: Several tiles for each persistent block, the last ones cut; the emulator is slow where each thread multiplies.
LARGE = [(129, 270, 329), (264, 528, 136)]
FIRST_HOPPER_STEP = 6
SIZES_OF = [(step, sizes) for step in STEPS for sizes in SIZES + LARGE * (int(step[:2]) >= FIRST_HOPPER_STEP)]


@pytest.fixture(scope="module", params=examples_library.TARGETS)
def hopper(request: pytest.FixtureRequest) -> Library:
    """The steps, on each target here that has Hopper's instructions."""
    return examples_library.library(request.param)


def fitted(step: str, m: int, n: int, k: int) -> tuple[int, int, int]:
    """The sizes, rounded up to what the step takes."""
    of_k, of_n = multiples(step)
    return m, -(-n // of_n) * of_n, -(-k // of_k) * of_k


def integers(seed: int, *shape: int) -> Tensor:
    """Sums of their products are exact in float32."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.parametrize(
    ("step", "sizes"), SIZES_OF, ids=lambda part: part if isinstance(part, str) else "x".join(map(str, part))
)
def test_integers_are_multiplied_exactly(hopper, step, sizes, emulator_seed):
    m, n, k = fitted(step, *sizes)
    a, b = integers(emulator_seed, m, k), integers(100 + emulator_seed, n, k)
    c, message = hopper.run(step, a, b)
    assert message == ""
    assert torch.equal(c, (a.double() @ b.double().T).bfloat16())


@pytest.mark.parametrize("step", STEPS)
def test_error_is_at_most_twice_torchs(hopper, step, emulator_seed):
    generator = torch.Generator().manual_seed(emulator_seed)
    m, n, k = fitted(step, 67, 133, 315)
    a, b = (torch.randn(rows, k, generator=generator).bfloat16() for rows in (m, n))
    c, message = hopper.run(step, a, b)
    assert message == ""
    compared = Expected.of(lambda x, y: x @ y.T, Sample("random", (a, b))).compare({"output0": c})
    assert all(one.ok for one in compared), compared


@pytest.mark.parametrize("step", STEPS)
def test_sizes_that_a_step_does_not_take_are_refused(hopper, step):
    of_k, of_n = multiples(step)
    for n, k, number in ((8, 12, 12), (12, 8, 12)):
        message = hopper.run(step, integers(0, 8, k), integers(1, n, k))[1]
        taken = k % of_k == 0 and n % of_n == 0
        assert (
            message == "" if taken else re.search(rf"\b{number}\b.*multiple of 8|multiple of 8.*\b{number}\b", message)
        )


def test_a_step_is_a_kernel_of_the_benchmarks(own_providers, monkeypatch):
    if "emulated" not in examples_library.TARGETS:
        pytest.skip(str(emulated.missing()))
    monkeypatch.setenv("HOPPER_MATMUL_LIBRARY", str(examples_library.library("emulated").path))
    assert bench.load_kernel(f"linear={FOLDER / 'steps.py'}:step_10_tma_store") == ["step_10_tma_store"]
    function = bench.PROVIDERS["step_10_tma_store"].function("linear", torch.device("cpu"))
    a, b = integers(0, 8, 16), integers(1, 24, 16)
    assert torch.equal(function(a, b), (a.double() @ b.double().T).bfloat16())
    with pytest.raises(RuntimeError, match="multiple of 8"):
        function(integers(0, 8, 12), integers(1, 8, 12))


# ---- the machine code ----


needs_machine_code = pytest.mark.skipif(
    NVCC is None or machine_code.tools_missing() is not None, reason=f"nvcc: {NVCC}; {machine_code.tools_missing()}"
)


@needs_machine_code
@pytest.mark.parametrize("step", STEPS)
def test_machine_code_is_as_the_file_and_the_page_say(step, tmp_path):
    cubin = tmp_path / "step.cubin"
    command = [str(NVCC), *steps.NVCC_FLAGS, "-cubin", str(FOLDER / f"{step}.cu"), "-o", str(cubin)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == "", "ptxas serializes wgmma, or has something else to say"
    (kernel,) = machine_code.read_cubin(cubin.read_bytes(), "sm_90a")
    assert not kernel.uses_local_memory
    promise = machine_code.all_declarations([FOLDER / f"{step}.cu"])[kernel.function]
    assert promise is not None
    assert promise.broken(kernel) == []

    text = section(step).partition("**Machine code.**")[2].partition("\n\n")[0]
    named = re.findall(r"(?:(\d+) x )?`([A-Z][A-Z0-9_]+(?:\.\w+)*)`", text)
    for times, opcode in named:
        assert kernel.count(opcode) >= int(times or 1), f"the page names {opcode}"
    declared = re.findall(r"[A-Z][A-Z0-9_]+", re.sub(r"\.\w+", "", promise.text))
    assert set(declared) <= {opcode.partition(".")[0] for _, opcode in named}, "the file declares what the page hides"


# ---- what is left out ----

#: A step that has what a header has.
USED_BY = {"warp_tile.cuh": "04_mma_sync", "hopper.cuh": "08_two_consumers", "store_boxes.cuh": "10_tma_store"}
SEEDS = 8
#: Statement -> why no seed of the emulator misses it.
NOT_MISSED = {
    "11_multicast.cu: __syncwarp()": "the emulator knows no divergence: its aligned barriers need no convergence",
    "11_multicast.cu: ptx::cluster_sync() #2": "no seed delays a warp's last arrival past the other block's epilogue",
}


def named_sites() -> dict[str, Site]:
    """Everything that can be left out, by "file: statement", from the second one of its kind on with " #2"."""
    found: dict[str, Site] = {}
    for site in examples_library.sites():
        name = f"{site.file}: {site.text}"
        same = sum(other == name or other.startswith(f"{name} #") for other in found)
        found[name if same == 0 else f"{name} #{same + 1}"] = site
    return found


SITES = named_sites()


def cut_sizes(step: str) -> tuple[int, int, int]:
    """m, n, k with cut tiles, several for each persistent block, and more steps of k than there are stages."""
    number = int(step[:2])
    if number <= 2:
        return 37, 35, 40
    if number <= 5:
        return 136, 131, 136
    return (136, 264, 328) if number <= 8 else (136, 520, 72 if number <= 10 else 136)


def complaints(site: int, file: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What is wrong without the site, for one seed after the other."""
    step = USED_BY.get(file, file.removesuffix(".cu"))
    m, n, k = cut_sizes(step)
    a, b = integers(0, m, k), integers(1, n, k)
    library = examples_library.switched()
    library.drop_site(site)
    for seed in range(SEEDS):
        monkeypatch.setenv("WARPWRIGHT_EMULATOR_SEED", str(seed))
        c, message = library.run(step, a, b)
        right = torch.equal(c, (a.double() @ b.double().T).bfloat16())
        yield message or ("" if right else "wrong numbers")


needs_emulator = pytest.mark.skipif("emulated" not in examples_library.TARGETS, reason=str(emulated.missing()))


@needs_emulator
@pytest.mark.parametrize("step", STEPS)
def test_nothing_left_out_nothing_wrong(step, monkeypatch):
    assert set(itertools.islice(complaints(0, step, monkeypatch), 2)) == {""}


@needs_emulator
@pytest.mark.parametrize("name", SITES)
def test_what_is_left_out_is_missed(name, monkeypatch):
    missed = any(complaints(SITES[name].number, SITES[name].file, monkeypatch))
    assert missed == (name not in NOT_MISSED)


# ---- the page ----


def blocks(kind: str) -> list[tuple[str, str]]:
    """The page's fenced blocks of this kind: (what follows the kind, text)."""
    return re.findall(rf"^```{kind} (.+)\n((?:.*\n)*?)```$", PAGE, re.MULTILINE)


def section(step: str) -> str:
    (found,) = re.findall(rf"^## {int(step[:2])}: (?:.*\n)*?(?=^## )", PAGE, re.MULTILINE)
    return found


@pytest.mark.parametrize(("file", "text"), blocks("cuda"))
def test_quoted_lines_are_in_the_files(file, text):
    assert text in (FOLDER / file).read_text()


@pytest.mark.parametrize("step", STEPS)
def test_every_step_has_a_section_that_quotes_it(step):
    text = section(step)
    assert "```cuda " in text
    assert "```emulator " in text or step == "01_naive", "it has nothing to order"
    assert f"{step}.cu" in PAGE
    for statement in ("**Emulator.**", "**Machine code.**"):
        assert statement in text


def shape(message: str) -> str:
    """The message on one line, without the numbers that another seed changes; lines of files stay."""
    return re.sub(r"(?<![\w:.])\d+", "N", " ".join(message.split()))


@needs_emulator
@pytest.mark.parametrize(("name", "text"), blocks("emulator"))
def test_quoted_messages_are_what_the_emulator_says(name, text, monkeypatch):
    said = complaints(SITES[name].number, SITES[name].file, monkeypatch)
    assert any(shape(message) == shape(text) for message in said)
