"""`ringattn plan`, `draw` and `doctor`: what they print, and what they answer to a mistake."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from ringattn.cli import report, sizes
from ringattn.cli.main import app
from ringattn.cli.mask_expression import read
from ringattn.cli.progress import followed
from ringattn_core.kernels.reference import Reference
from ringattn_core.run.kernel import Block


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    return result.output


def test_plan() -> None:
    output = run("plan", "--seqlen", "1M", "--cp", "8", "--layout", "zigzag", "--window", "4096", "--gpu", "h200")
    assert "1,048,576 tokens on 8 ranks" in output and "gather ← auto" in output
    assert routes(output) == ["ring", "waves", "waves(3)", "gather"]
    full = run("plan", "--seqlen", "1M", "--cp", "8")
    assert "waves ← backward" in full and "gather ← forward" in full and "auto " in full
    assert " s " in full and "12.5%" in full  # of the work: balanced


def test_what_does_not_fit_the_gpu_is_marked_and_never_taken() -> None:
    few = run("plan", "--seqlen", "4M", "--cp", "8", "--head-dim", "256", "--kv-heads", "32", "--gpu", "h100")
    assert "No route here fits: the smallest needs " in few and "Take more ranks." in few
    some = run("plan", "--seqlen", "4M", "--cp", "32", "--kv-heads", "32", "--gpu", "h200")
    marked = {line.split()[0]: " ✗" in line for line in some.splitlines() if " GiB" in line and " ms " in line}
    assert marked == {"ring": False, "waves": True, "waves(3)": True, "gather": True, "auto": False}
    assert "ring ← backward" in some and "✗ does not fit into the 139 GiB of an H200" in some
    assert "✗" not in run("plan", "--seqlen", "128k", "--cp", "8")


def test_plan_without_a_causal_mask() -> None:
    causal, both = (run("plan", "--seqlen", "64k", *more) for more in ((), ("--no-causal",)))
    flop = [float(re.findall(r"Work of a layer: (\S+) FLOP", output)[0]) for output in (causal, both)]
    assert 1.99 < flop[1] / flop[0] < 2.01
    window = run("plan", "--seqlen", "64k", "--no-causal", "--window", "4096")
    assert float(re.findall(r"Work of a layer: (\S+) FLOP", window)[0]) < flop[1] / 6


def test_plan_of_auto_alone() -> None:
    output = run("plan", "--seqlen", "1e6", "--route", "auto")
    assert "1,000,000 tokens on 8 ranks" in output and "auto = gather / waves " in output
    assert routes(output) == ["auto"]
    assert routes(run("plan", "--seqlen", "1M", "--route", "auto", "--route", "ring")) == ["ring", "auto"]
    assert routes(run("plan", "--cp", "1", "--route", "auto")) == ["auto"]


def routes(output: str) -> list[str]:
    return [line.split()[0] for line in output.splitlines() if " ms " in line]


def test_plan_of_named_routes_and_lengths() -> None:
    output = run("plan", "--seqlen", "50k,3k,1k", "--cp", "4", "--route", "ring", "--route", "double_ring(2)")
    assert "55,296 tokens in 3 documents on 4 ranks" in output
    assert routes(output) == ["ring", "double_ring(2)", "auto"]
    # Another name of a route is the same route, here gather's.
    output = run("plan", "--seqlen", "1M", "--route", "waves(1)", "--window", "4096")
    assert routes(output) == ["waves(1)"] and "waves(1) ← auto" in output


def test_plan_says_what_auto_was_chosen_for() -> None:
    def note(*arguments: str) -> str:
        return next((line for line in run("plan", "--cp", "4", *arguments).splitlines() if "chosen for" in line), "")

    assert note("--seqlen", "60k", "--documents", "60") == (
        "auto was chosen for 24 documents of 1,024 tokens, not for these lengths: another may be faster here."
    )
    assert note("--seqlen", "60k", "--documents", "60", "--layout", "balanced").startswith(
        "auto was chosen for 48 documents of 1,024 tokens, not"
    )
    assert note("--seqlen", "60k,4k,1k", "--layout", "balanced") == ""
    assert note("--seqlen", "60k", "--documents", "24") == ""


def test_one_rank_needs_no_route() -> None:
    output = run("plan", "--cp", "1")
    assert routes(output) == ["ring"] and "tokens on 1 rank, zigzag" in output and "←" not in output
    assert "every route is the same" in output


def test_plan_says_what_differs() -> None:
    output = run("plan", "--seqlen", "4", "--cp", "8")
    assert "4 of the 8 ranks hold no token at all" in output and "TFLOP" in output
    assert "no token" not in run("plan", "--seqlen", "64k", "--cp", "8", "--window", "1k")


@pytest.mark.parametrize("seqlen", ["4", "64k", "1M", "16M"])
def test_the_table_fits_a_terminal(seqlen: str) -> None:
    output = CliRunner().invoke(app, ["plan", "--seqlen", seqlen, "--cp", "4"], env={"COLUMNS": "80"}).output
    assert "←" in output and "…" not in output  # the sign that something was cut


def test_no_bar_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(followed([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


def test_draw(tmp_path: Path) -> None:
    output = run("draw", "--seqlen", "4", "--cp", "2", "--layout", "contiguous", "--route", "ring")
    assert "0 | 0 · · · |\n0 | 0 0 · · |\n1 | 1 1 0 · |\n1 | 1 1 0 0 |" in output
    assert "rank 1 |" in output
    picture = tmp_path / "mask.svg"
    assert str(picture) in run("draw", "--seqlen", "7,5,12", "--window", "4", "--svg", str(picture)).replace("\n", "")
    assert picture.read_text().startswith("<svg")
    legend = "A sign is the sequence of a token, from 0 to 2; · is held by another rank."
    assert legend in run("draw", "--seqlen", "7,5,12") and "A sign" not in output


MASK = "causal(6) | two_way([range(1, 4)])"


def test_draw_a_mask_alone(tmp_path: Path) -> None:
    output = run("draw", "--mask", MASK)
    assert output.splitlines()[:4] == ["█ · · · · ·", "█ █ █ █ · ·", "█ █ █ █ · ·", "█ █ █ █ · ·"]
    assert "█ all live, ▒ some, · none." in output and "rank" not in output
    assert "a cell is 1,366 x 1,366 tokens" in run("draw", "--mask", "causal(64k)")
    narrow = CliRunner().invoke(app, ["draw", "--mask", "causal(64k)"], env={"COLUMNS": "40"}).output
    assert max(map(len, narrow.splitlines())) <= 40 and narrow.startswith("▒ · ")
    assert "█ █ █ █\n█ █ █ █\n" in run("draw", "--mask", "full(2, 4)")
    picture = tmp_path / "mask.svg"
    assert str(picture) in run("draw", "--mask", MASK, "--svg", str(picture)).replace("\n", "")
    assert "Which keys each query sees" in picture.read_text()


@pytest.mark.parametrize("layout", ["contiguous", "zigzag", "balanced", "striped"])
@pytest.mark.parametrize("route", ["ring", "waves", "gather"])
def test_draw_who_computes_which_part_of_a_mask(layout: str, route: str) -> None:
    output = run("draw", "--mask", MASK, "--cp", "2", "--layout", layout, "--route", route)
    rows = re.findall(r"(?m)^\d \| (.*) \|$", output)
    live = read(MASK).dense()
    assert [[sign != "·" for sign in row.split()] for row in rows] == [[bool(cell) for cell in row] for row in live]
    assert "rank 1 |" in output and "hop" in output


def test_plan_a_mask() -> None:
    mask, causal = (run("plan", "--cp", "4", *seen) for seen in (("--mask", "causal(64k)"), ("--seqlen", "64k")))
    assert routes(mask) == ["ring", "waves", "waves(3)", "gather"]
    assert "65,536 tokens on 4 ranks" in mask and "waves ← auto" in mask and "it is waves." in mask
    assert re.findall(r"Work of a layer.*", mask) == re.findall(r"Work of a layer.*", causal)
    balanced = run("plan", "--cp", "4", "--layout", "balanced", "--mask", "shared_prefix(8k, [1k] * 24)")
    assert "the busiest rank has 25.0% of it" in balanced
    assert "0 tokens on 8 ranks" in run("plan", "--mask", "two_way([])")


def test_a_picture_is_what_its_name_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "mask.PNG"
    converted = ModuleType("cairosvg")
    converted.__dict__["svg2png"] = lambda bytestring, scale: b"\x89PNG of " + bytestring[:4]
    monkeypatch.setitem(sys.modules, "cairosvg", converted)
    run("draw", "--svg", str(picture))
    assert picture.read_bytes() == b"\x89PNG of <svg"
    monkeypatch.setitem(sys.modules, "cairosvg", None)
    refused = CliRunner().invoke(app, ["draw", "--svg", "mask.png"], env={"COLUMNS": "240"})
    assert refused.exit_code == 2 and "mask.png needs CairoSVG (python -m pip install cairosvg), or" in refused.output


def test_pictures_that_cairosvg_draws(tmp_path: Path) -> None:
    pytest.importorskip("cairosvg")
    run("draw", "--svg", str(tmp_path / "mask.png"))
    content = (tmp_path / "mask.png").read_bytes()
    width, height = (int.from_bytes(content[at : at + 4]) for at in (16, 20))
    assert content.startswith(b"\x89PNG\r\n") and (width, height) == (1024, 1016)


@pytest.mark.parametrize("width", ["24", "40", "60"])
def test_a_narrow_terminal_gets_whole_numbers(width: str) -> None:
    wide, narrow = (
        CliRunner().invoke(app, ["plan", "--seqlen", "16M"], env={"COLUMNS": columns}).output
        for columns in ("160", width)
    )
    assert "…" not in narrow
    rows = [line for line in wide.splitlines() if line.startswith((" ring", " waves", " gather"))]
    assert len(rows) == 4
    for number in (cell for row in rows for cell in re.split(r"  +", row.strip())):
        assert number in narrow


@pytest.mark.parametrize("arguments", [(), ("--cp", "8"), ("--layout", "striped"), ("--seqlen", "100k,20k,7")])
def test_drawings_fit_a_terminal(arguments: tuple[str, ...]) -> None:
    seqlen = () if "--seqlen" in arguments else ("--seqlen", "1k")
    output = CliRunner().invoke(app, ["draw", *seqlen, *arguments], env={"COLUMNS": "80"}).output
    lines = output.splitlines()
    assert max(map(len, lines)) <= 80 and "| rank of the key" in output
    assert all(line.endswith(("|", "tokens", "key", "launches")) for line in lines if "|" in line)


def test_what_cannot_fit_stays_in_one_line() -> None:
    output = CliRunner().invoke(app, ["draw", "--seqlen", "1k", "--cp", "20"], env={"COLUMNS": "80"}).output
    assert len([line for line in output.splitlines() if line.endswith("of the cells in 20 launches")]) == 20


def test_doctor() -> None:
    output = run("doctor")
    for line in ("torch", "✓  reference", "✓  torch_flash", "–  flash_attn_4", "✓  threads", "peer access"):
        assert line in "\n".join(
            " ".join(part.split()).replace("✓ ", "✓  ").replace("– ", "–  ") for part in output.splitlines()
        )


def test_doctor_says_which_kernel_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Reference.forward

    def nan(*given: Any) -> tuple[Block, torch.Tensor | None]:
        block, state = forward(*given)
        return Block(block.out.index_fill(0, torch.tensor([0]), torch.nan), block.lse), state

    device = torch.device("cpu")
    assert report._kernel("reference", device, torch.float32)[1]
    monkeypatch.setattr(Reference, "forward", nan)
    assert report._kernel("reference", device, torch.float32)[1:] == (
        False,
        "WRONG: out is off by inf, more than 1.0e-05",
    )


def test_help_has_examples() -> None:
    for command in (["demo"], ["plan"], ["draw"], ["doctor"], []):
        output = run(*command, "--help")
        assert "Example" in output and " ".join(["ringattn", *command]) in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "--gpu", "h300"], "Did you mean 'h200'"),
        (["plan", "--route", "rings"], "'--route': There is no route 'rings'"),
        (["plan", "--route", "double_ring(3)"], "'--route': double_ring(3) needs a cp_size that 3 divides, got 8"),
        (["plan", "--seqlen", "1k,2k", "--documents", "3"], "'--documents': --seqlen already gives the lengths of 2"),
        (["demo", "--tokens", "63"], "'--tokens': it must be a whole number, from 64 to 8,192, got 63."),
        (["demo", "--route", "rings"], "'--route': There is no route 'rings'"),
        (["draw", "--seqlen", "0"], "'--seqlen': '0' is no number of tokens"),
        (["draw", "--seqlen", "7,,12"], "'--seqlen': '' in '7,,12' is no number of tokens"),
        (["draw", "--seqlen", "7,,12"], "lengths of documents such as 7,5,12"),
        (["plan", "--seqlen", "many"], "8192, 64k, 1M or 1e6"),
        (["plan", "--seqlen", "0"], "--seqlen"),
        (["plan", "--seqlen", "-4k"], "'-4k' is no number of tokens"),
        (["plan", "--seqlen", "1.3"], "8192, 64k, 1M or 1e6"),
        (
            ["plan", "--seqlen", "10", "--documents", "11"],
            "'--documents': 11 documents need as many tokens or more, got 10.",
        ),
        (["plan", "--window", "0"], "'--window'"),
        (["plan", "--window", "-3"], "'-3' is no number of tokens"),
        (["plan", "--cp", "0"], "'--cp': it must be a whole number, from 1 to 256, got 0."),
        (["plan", "--cp", "many"], "'--cp': it must be a whole number, from 1 to 256, got many."),
        (["plan", "--cp", "257"], "got 257"),
        (["plan", "--layout", "spiral"], "'contiguous', 'zigzag', 'striped'"),
        (["plan", "--heads", "0"], "'--heads': it must be a whole number, 1 or more, got 0."),
        (["plan", "--kv-heads", "5"], "'--kv-heads': it must divide --heads = 32, got 5"),
        (["plan", "extra"], "extra"),
        (["draw", "--route", "rings"], "'--route': There is no route 'rings'"),
        (["draw", "--route", "rings"], "Did you mean 'ring'"),
        (["draw", "--route", "waves(0)"], "a count of 1 or more, got 0"),
        (["draw", "--route", ""], "'gather'"),
        (["draw", "--seqlen", "4,,5"], "8192, 64k, 1M or 1e6"),
        (["draw", "--window", "-1"], "'--window'"),
        (["draw", "--svg", "mask.jpg"], "'--svg': mask.jpg would be JPG: name a file that ends in .svg or .png."),
        (["draw", "--svg", "/"], "'--svg': / cannot be written: Is a directory"),
        (["doctor", "--verbose"], "--verbose"),
        (["draw", "--route", "double_ring(3)"], "double_ring(3)"),
        (["draw", "--svg", "/nowhere/mask.svg"], "cannot be written"),
        (["darw"], "draw"),
        (["draw", "--mask", "casual(12)"], "'--mask': There is no maker of masks 'casual'"),
        (["plan", "--mask", "casual(12)"], "there are 'blocks', 'causal'"),
        (["draw", "--mask", "causal(12)", "--window", "3"], "'--mask': it says all that --window would: leave it out."),
        (["plan", "--mask", "causal(12)", "--no-causal", "--seqlen", "3"], "all that --no-causal and --seqlen would"),
        (["plan", "--mask", "causal(12)", "--documents", "1"], "all that --documents would"),
        (
            ["draw", "--mask", "causal(12)", "--route", "double_ring(3)"],
            "double_ring(3) needs a cp_size that 3 divides",
        ),
    ],
)
def test_a_mistake_gets_a_message_and_no_trace(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "240"})
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output


def test_sizes() -> None:
    assert [sizes.tokens(text) for text in ("8192", "64k", "1M", "1.5k", "8_192")] == [8192, 65536, 2**20, 1536, 8192]
    assert [sizes.tokens(text) for text in ("1e6", "1.5E3", "1B", "2G", "0.5b")] == [10**6, 1500, 2**30, 2**31, 2**29]
    for text in ("1e30", "1e-3", "1e", "e6", "1.0001"):
        with pytest.raises(typer.BadParameter, match=f"'{text}' is no number of tokens"):
            sizes.tokens(text)
    with pytest.raises(typer.BadParameter, match="'8,192' is no number of tokens"):
        sizes.tokens("8,192")  # A comma stands between lengths.
    assert sizes.lengths("64k") == [65536] and sizes.lengths("7, 5,1k") == [7, 5, 1024]
    assert sizes.count(1, "token") == "1 token" and sizes.count(8192, "token") == "8,192 tokens"
    assert [sizes.data(size) for size in (512, 1010 * 2**20, 3 * 2**30)] == ["512 B", "0.986 GiB", "3 GiB"]
    assert sizes.data(2**40) == "1 TiB" and sizes.digits(3941.2) == "3,940"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.9996, "1 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min"),
        (125, "2 min 5 s"),
        (3599.6, "1 h"),
        (12_000, "3 h 20 min"),
        (48 * 3600 - 20, "2 days"),
        (187_200, "2 days 4 h"),
    ],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert sizes.duration(seconds) == text


def test_without_the_extra() -> None:
    program = "import sys; sys.modules['typer'] = None; from ringattn.cli.entry import main; main()"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (
        result.returncode == 1 and "pip install 'ringattn[cli]'" in result.stderr and "Traceback" not in result.stderr
    )


def test_the_version() -> None:
    assert run("--version").startswith("ringattn")


def test_names_that_a_shell_would_refuse_are_quoted() -> None:
    for command in ("plan", "draw", "demo"):
        text = " ".join(run(command, "--help").split())
        assert "'windowed(4096)'" in text and "'waves(3)'" in text
    assert " of ideal: " in run("plan", "--help")


@pytest.mark.parametrize("module", ["ringattn", "ringattn.cli"])
def test_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "draw", "--seqlen", "4", "--cp", "1"]
    assert "rank 0 |████| 4 tokens" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
