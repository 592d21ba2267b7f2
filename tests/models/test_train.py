import dataclasses
import json
import os
import signal

import pytest
import torch
from safetensors import safe_open

from models.bind import use
from models.build import build
from models.presets import PAIR, PRESETS
from models.train import main
from models.train_loop import StateError, Training, rate
from models.train_run import LOG, read_log
from models.train_tasks import Copy, Recall, Text, generator_of

SMALL = {"vocab_size": 160, "hidden_size": 32}
OPTIONS = ["--task", "copy", "--seqlen", "9", "--batch", "3", "--steps", "6"]
SETTINGS = {"steps": 40, "batch": 16, "lr": 1e-2, "seed": 0}


@pytest.fixture(autouse=True, scope="module")
def small():
    """The preset tiny with a small vocabulary."""
    tiny = PRESETS["tiny"]
    changed = dataclasses.replace(tiny, mamba=tiny.mamba | SMALL, llama=tiny.llama | SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", changed)
        yield


def weights(folder, arch):
    with safe_open(folder / arch / "model.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def log(folder):
    return [
        {name: value for name, value in record.items() if name != "seconds"}
        for record in read_log(folder / LOG)
    ]


def after(monkeypatch, steps, act):
    """Do something in the middle of the step that comes after `steps` of them."""
    count, step = [0], Training.step

    def stepped(training):
        count[0] += 1
        if count[0] == steps + 1:
            act()
        return step(training)

    monkeypatch.setattr(Training, "step", stepped)


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """A training of both architectures that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main([*OPTIONS, "--out", str(folder)]) == 0
    torch.set_num_threads(threads)
    return folder


@pytest.mark.parametrize("steps", [0, 2, 7], ids=lambda n: f"after {n} steps")
def test_an_interrupted_training_goes_on_to_the_same_bits(
    whole, tmp_path, monkeypatch, capsys, steps
):
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        after(patch, steps, lambda: os.kill(os.getpid(), signal.SIGINT))
        assert main([*OPTIONS, "--out", str(tmp_path)]) == 130
    assert f"python -m models.train --out {tmp_path} --resume" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler
    assert main(["--out", str(tmp_path), "--resume"]) == 0
    assert log(tmp_path) == log(whole)
    for arch in PAIR:
        expected = weights(whole, arch)
        assert all(
            torch.equal(value, expected[name]) for name, value in weights(tmp_path, arch).items()
        )


def test_a_crash_goes_back_to_the_last_saved_state(whole, tmp_path, monkeypatch):
    def crash():
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        after(patch, 5, crash)
        with pytest.raises(ZeroDivisionError):
            main([*OPTIONS, "--out", str(tmp_path), "--save-every", "3"])
    with (tmp_path / LOG).open("a") as opened:
        opened.write('{"arch": "llama", "st')  # a line that was being written
    assert len(log(tmp_path)) == 5
    assert main(["--out", str(tmp_path), "--resume"]) == 0
    assert log(tmp_path) == log(whole)


def test_a_finished_training_leaves_checkpoints_log_and_picture(whole, capsys):
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    files = ("config.json", "generation_config.json", "model.safetensors")
    expected = {f"{arch}/{file}" for arch in PAIR for file in files}
    assert names == expected | {"train.json", "loss.jsonl", "loss.png"}
    for arch in PAIR:
        model = build(arch, checkpoint=whole / arch)
        fresh = build(arch, "tiny")
        moved = [
            n for n, p in model.named_parameters() if not torch.equal(p, fresh.get_parameter(n))
        ]
        assert len(moved) == len(list(model.parameters()))
        steps = [record for record in log(whole) if record["arch"] == arch]
        assert [record["step"] for record in steps] == [1, 2, 3, 4, 5, 6, 6]
        assert steps[0]["kernels"]
        assert steps[-1]["held_out"].keys() == {"loss", "accuracy"}
    assert main(["--out", str(whole), "--resume"]) == 0  # nothing is left to do
    assert "loss.png" in capsys.readouterr().out


def test_it_learns(model_of):
    for task in (Copy(5), Recall(4), Text(list(range(40)) * 20, 9)):
        training = Training(model_of, task, SETTINGS)
        with use(model_of, "cpu"):
            losses = [training.step()["loss"] for _ in range(SETTINGS["steps"])]
        assert losses[-1] < 0.8 * losses[0]


@pytest.fixture(params=PAIR)
def model_of(request):
    return build(request.param, "tiny")


def test_loss_is_that_of_transformers_where_every_token_counts(model_of):
    text = Text(torch.arange(400) % 160, 12)
    training = Training(model_of, text, SETTINGS)
    ids = text(SETTINGS["batch"], generator_of(0, "training", 0)).ids
    expected = model_of(ids, labels=ids).loss.item()
    assert training.step()["loss"] == pytest.approx(expected)


def test_implementations_train_alike(model_of):
    arch = model_of.config.model_type
    losses = {}
    for impl in ("hf", "torch", "cpu"):
        model = build(arch, "tiny")
        with use(model, impl):
            training = Training(model, Copy(9), SETTINGS | {"steps": 5})
            losses[impl] = [training.step()["loss"] for _ in range(5)]
    assert losses["torch"] == pytest.approx(losses["hf"], rel=1e-4)
    assert losses["cpu"] == pytest.approx(losses["hf"], rel=1e-4)


def test_learning_rate_warms_up_and_falls():
    rates = [rate(step, 100, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0.1 < rates[-1] < 0.11
    assert rate(0, 1, 1.0) == 1.0


def test_norms_and_time_scales_do_not_decay():
    training = Training(build("mamba", "tiny"), Copy(5), SETTINGS)
    decayed, kept = (group["params"] for group in training.optimiser.param_groups)
    names = {id(p): name for name, p in training.parameters.items()}
    assert {names[id(p)] for p in kept if "layers.1" not in names[id(p)]} == {
        "backbone.norm_f.weight",
        *(f"backbone.layers.0.{name}" for name in ("norm.weight", "mixer.A_log", "mixer.D", "mixer.conv1d.bias",
                                                   "mixer.dt_proj.bias")),
    }  # fmt: skip
    assert len(decayed) + len(kept) == len(names)


def test_a_loss_that_is_not_finite_ends_the_training(model_of):
    with torch.no_grad():
        next(model_of.parameters()).fill_(float("nan"))
    training = Training(model_of, Copy(5), SETTINGS)
    with pytest.raises(FloatingPointError, match=r"the loss of step 1 is nan; use a smaller --lr"):
        training.step()


def test_states_that_cannot_be_continued_are_refused(model_of, tmp_path):
    path = tmp_path / "state.safetensors"
    Training(model_of, Copy(5), SETTINGS).save(path)
    with pytest.raises(StateError, match="other settings"):
        Training(model_of, Copy(5), SETTINGS | {"lr": 1.0}).load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(StateError, match="no readable state"):
        Training(model_of, Copy(5), SETTINGS).load(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--steps", "0"], "'0' is not a whole number above 0"),
        (["--lr", "nan"], "'nan' is not a number between 0 and 1"),
        (["--arch", "llama,gpt"], "'gpt' is unknown; choose from mamba, llama"),
        (["--task", "copy", "--seqlen", "2"], "must be at least 3"),
        (["--task", "copy", "--sessions", "x"], "--task copy makes its own tokens"),
        (["--sessions", "/nowhere"], "/nowhere"),
        (["--resume"], "name the training with --out DIR"),
        (["--resume", "--out", "/nowhere"], "/nowhere holds no training"),
    ],
)
def test_bad_options_are_one_line_with_status_2(argv, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert message in said


def test_a_folder_in_use_and_other_options_are_refused(whole, capsys):
    for argv, message in (
        (["--out", str(whole), *OPTIONS], "is not empty; add --resume"),
        (["--out", str(whole), "--resume", "--steps", "9"], "began with 6; leave the option out"),
        (["--out", str(whole), "--resume", "--arch", "mamba"], "began with llama,mamba"),
    ):
        with pytest.raises(SystemExit):
            main(argv)
        assert message in capsys.readouterr().err


def test_unavailable_implementation_writes_nothing(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("cuda can run here")
    with pytest.raises(SystemExit):
        main(["--impl", "cuda", "--task", "copy", "--out", str(tmp_path / "new")])
    assert "unavailable, because" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_settings_are_plain_json(whole):
    settings = json.loads((whole / "train.json").read_text())
    assert settings["options"]["arch"] == ["llama", "mamba"]
    assert settings["options"]["impl"] in ("cpu", "triton")
