import errno
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save, save_file

from cfa_cli import download
from cfa_cli.errors import ExitCode, WeightsError
from cfa_cli.weights import hub
from cfa_cli.weights import loading as weights
from cfa_cli.weights.loading import load_weights
from tests.weights.hub_server import hub_server, packet_dropper

REPO = "timm/resnet18.tv_in1k"


def tensors(seed=0, size=20_000):
    generator = torch.Generator().manual_seed(seed)
    return {
        "conv1.weight": torch.randn(size, generator=generator),
        "bn1.num_batches_tracked": torch.tensor(7),
        "bn1.bias": torch.tensor([0.5, -2.0]),
    }


CONTENT = save(tensors())
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A machine of its own: empty caches, no token, no network."""
    monkeypatch.setattr(hub, "cache_folder", lambda: tmp_path / "cache" / "cfa" / "weights")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "huggingface"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def server(monkeypatch):
    with hub_server(CONTENT, REPO) as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def embedded(tmp_path, monkeypatch):
    path = tmp_path / "embedded.safetensors"
    save_file(tensors(seed=1, size=8), path)
    monkeypatch.setattr(weights, "EMBEDDED_PATH", path)
    monkeypatch.setattr(weights, "EMBEDDED_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def folder():
    return hub.cache_folder()


def names():
    return sorted(path.name for path in folder().iterdir() if path.suffix != ".lock")


FINAL = f"resnet18.tv_in1k-{DIGEST[:16]}.safetensors"


def assert_is_the_hubs(loaded):
    assert loaded.origin == "imagenet: resnet18.tv_in1k"
    assert loaded.sha256 == DIGEST
    assert loaded.warning is None
    assert loaded.state_dict.keys() == tensors().keys()
    for name, tensor in tensors().items():
        assert torch.equal(loaded.state_dict[name], tensor)


# ---- the hub


def test_download_is_kept_and_then_needs_no_network(server):
    notes = []
    assert_is_the_hubs(load_weights("auto", "resnet18", notes.append))
    assert notes[0] == f"Downloading resnet18.tv_in1k from 127.0.0.1:{server.server_port}, 0.1 MB."
    assert len(notes) == 2
    assert names() == [FINAL]
    assert (folder() / FINAL).read_bytes() == CONTENT
    asked = len(server.requests)
    server.status = 503
    for spec in ("auto", "imagenet"):
        assert_is_the_hubs(load_weights(spec, "resnet18"))
    assert len(server.requests) == asked


def test_token_goes_to_the_hub_and_not_to_its_cdn(server):
    load_weights("imagenet", "resnet18")
    (_, to_hub), (cdn, to_cdn) = server.requests
    assert cdn.startswith("/cdn/")
    assert to_hub["authorization"] == "Bearer hf_secret"
    assert "authorization" not in to_cdn


@pytest.mark.parametrize(
    ("backbone", "repo"),
    [
        ("wide_resnet50_2", "timm/wide_resnet50_2.tv_in1k"),
        ("vgg19_bn", "timm/vgg19_bn.tv_in1k"),
        ("test_resnet", "timm/test_resnet.r160_in1k"),  # timm's own default
        ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
    ],
)
def test_each_backbone_has_its_repository(server, backbone, repo):
    server.repos = {repo}
    assert load_weights("auto", backbone).origin == f"imagenet: {repo.removeprefix('timm/')}"


def test_cut_connection_is_resumed_in_the_same_run(server):
    server.cuts = [30_000, 10_000]
    assert_is_the_hubs(load_weights("imagenet", "resnet18"))
    assert server.cdn_ranges == [None, "bytes=30000-", "bytes=40000-"]


def test_cut_connection_is_resumed_by_the_next_run_and_no_half_file_is_used(server, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.cuts = [30_000]
    with pytest.raises(WeightsError, match="cut 1 times"):
        load_weights("imagenet", "resnet18")
    assert names() == [f".{FINAL}.partial"]
    assert (folder() / names()[0]).read_bytes() == CONTENT[:30_000]
    server.requests.clear()
    assert_is_the_hubs(load_weights("imagenet", "resnet18"))
    assert server.cdn_ranges[-1] == "bytes=30000-"
    assert names() == [FINAL]


def test_a_connection_that_is_cut_for_ever_is_given_up(server):
    server.cuts = [10_000] * 100
    with pytest.raises(WeightsError, match="cut 5 times"):
        load_weights("imagenet", "resnet18")
    server.cuts = [0] * 100
    with pytest.raises(WeightsError, match="stopped sending"):
        load_weights("imagenet", "resnet18")


def test_a_download_that_falls_silent_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.cuts, server.silent_after_cut = [30_000, 0], True
    started = time.monotonic()
    with pytest.raises(WeightsError, match="stopped sending"):
        load_weights("imagenet", "resnet18")
    assert time.monotonic() - started < 3


def test_wrong_checksum_is_deleted(server, embedded):
    server.content = CONTENT[:-1] + b"\x00"  # same size
    with pytest.raises(WeightsError, match="checksum") as caught:
        load_weights("imagenet", "resnet18")
    assert "--weights FILE" in caught.value.hint
    assert names() == []
    assert load_weights("auto", "resnet18").origin == "embedded"
    server.content = CONTENT
    assert_is_the_hubs(load_weights("imagenet", "resnet18"))


def test_an_answer_without_checksum_is_not_trusted(server):
    server.announced = "a-login-page"
    with pytest.raises(WeightsError, match="not answer like a Hugging Face hub"):
        load_weights("imagenet", "resnet18")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(404, r"has no timm/resnet18\.tv_in1k/model\.safetensors"), (401, "refuses"), (503, r"\(HTTP 503\)")],
)
def test_http_errors_are_one_sentence(server, status, sentence):
    server.status = status
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_weights("imagenet", "resnet18")
    assert "\n" not in caught.value.message
    assert f"{server.endpoint}/{REPO}/resolve/main/model.safetensors" in caught.value.hint


def test_a_repository_without_the_file_is_said(server):
    with pytest.raises(WeightsError, match=r"has no timm/vgg19_bn\.tv_in1k/model\.safetensors \(HTTP 404\)"):
        load_weights("auto", "vgg19_bn")


# ---- no network


def test_without_network_resnet18_falls_back_loudly_and_nothing_else_does(embedded):
    notes = []
    loaded = load_weights("auto", "resnet18", notes.append)
    assert (loaded.origin, loaded.warning) == ("embedded", weights.EMBEDDED_WARNING)
    assert notes == ["127.0.0.1:9 cannot be reached: Connection refused."]
    for spec, backbone in (("imagenet", "resnet18"), ("auto", "wide_resnet50_2"), ("auto", "resnet18.a1_in1k")):
        with pytest.raises(WeightsError, match="cannot be reached") as caught:
            load_weights(spec, backbone)
        assert caught.value.exit_code == ExitCode.WEIGHTS
        assert all(word in caught.value.hint for word in ("--weights FILE", "HF_ENDPOINT"))


def test_dropped_packets_cost_five_seconds_and_are_said(embedded, monkeypatch):
    notes = []
    with packet_dropper() as endpoint:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
        started = time.monotonic()
        loaded = load_weights("auto", "resnet18", notes.append)
        waited = time.monotonic() - started
    assert 4 < waited < 8
    assert loaded.origin == "embedded"
    assert notes == [f"No answer from {endpoint.removeprefix('http://')} within 5 s."]


def test_a_server_that_never_answers_is_given_up(server, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.silent = True
    started = time.monotonic()
    with pytest.raises(WeightsError, match=r"No answer from .* within 0\.3 s"):
        load_weights("imagenet", "resnet18")
    assert time.monotonic() - started < 2
    assert len(server.requests) == 1


def test_a_name_lookup_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: time.sleep(5))
    started = time.monotonic()
    with pytest.raises(WeightsError, match="No answer"):
        load_weights("imagenet", "resnet18")
    assert time.monotonic() - started < 2


def test_offline_asks_nobody(server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="HF_HUB_OFFLINE is set"):
        load_weights("imagenet", "resnet18")
    assert server.requests == []


def test_a_copy_in_the_hugging_face_cache_is_used(tmp_path):
    repo = tmp_path / "huggingface" / "models--timm--resnet18.tv_in1k"
    for path, content in {"refs/main": b"abc", "snapshots/abc/model.safetensors": CONTENT}.items():
        (repo / path).parent.mkdir(parents=True)
        (repo / path).write_bytes(content)
    assert_is_the_hubs(load_weights("imagenet", "resnet18"))


# ---- the cache folder


def test_a_damaged_copy_is_downloaded_again(server):
    load_weights("imagenet", "resnet18")
    (folder() / FINAL).write_bytes(CONTENT[:-1] + b"\x00")
    notes = []
    assert_is_the_hubs(load_weights("imagenet", "resnet18", notes.append))
    assert "is damaged" in notes[0]
    assert (folder() / FINAL).read_bytes() == CONTENT


def test_a_cache_folder_that_cannot_be_written_costs_the_copy_alone(server):
    folder().parent.mkdir(parents=True)
    folder().write_text("a file where the folder belongs")
    notes = []
    assert_is_the_hubs(load_weights("imagenet", "resnet18", notes.append))
    assert notes[0].startswith(f"Cannot write to {folder()}: ")


def test_a_full_disk_is_one_sentence(server, monkeypatch):
    monkeypatch.setattr(
        download, "_chunks", lambda stream: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left"))
    )
    with pytest.raises(WeightsError, match=r"Cannot write the weights to .*: No space left"):
        load_weights("imagenet", "resnet18")
    assert names() == []


def test_two_processes_share_one_download(server):
    script = (
        "import sys; from pathlib import Path; from cfa_cli import download; from cfa_cli.weights import hub\n"
        "download.TIMEOUT = 60\n"
        f"print(hub.download('resnet18.tv_in1k', '{REPO}', Path(sys.argv[1]), print))"
    )
    command = [sys.executable, "-u", "-c", script, str(folder())]
    environment = os.environ | {"HF_ENDPOINT": server.endpoint, "HF_HUB_OFFLINE": "0"}
    server.cuts, server.silent_after_cut = [30_000], True  # holds the first one in the middle of its download
    with (
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as first,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as second,
    ):
        said = {first.stdout.readline(), second.stdout.readline()}
        server.released.set()
        lasts = [process.stdout.read().splitlines()[-1] for process in (first, second)]
    host = server.endpoint.removeprefix("http://")
    assert said == {
        f"Downloading resnet18.tv_in1k from {host}, 0.1 MB.\n",
        "Another process is downloading resnet18.tv_in1k: waiting for it.\n",
    }
    assert lasts == [str(folder() / FINAL)] * 2
    assert server.cdn_ranges == [None, "bytes=30000-"]
    assert (folder() / FINAL).read_bytes() == CONTENT


# ---- embedded


def test_embedded_asks_nobody_and_is_checked(server, embedded):
    loaded = load_weights("embedded", "resnet18")
    assert (loaded.origin, loaded.warning) == ("embedded", None)
    assert loaded.sha256 == hashlib.sha256(embedded.read_bytes()).hexdigest()
    with pytest.raises(WeightsError, match="for resnet18, not for vgg19_bn"):
        load_weights("embedded", "vgg19_bn")
    embedded.write_bytes(embedded.read_bytes()[:-1] + b"\x01")
    with pytest.raises(WeightsError, match="missing or damaged"):
        load_weights("embedded", "resnet18")
    assert server.requests == []


@pytest.mark.skipif(not weights.EMBEDDED_SHA256, reason="the package has no embedded weights")
def test_the_packages_own_weights_load():
    loaded = load_weights("embedded", "resnet18")
    assert loaded.sha256 == weights.EMBEDDED_SHA256
    assert loaded.state_dict["conv1.weight"].shape == (64, 3, 7, 7)


# ---- files


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_a_file_of_each_kind(tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    save_file(tensors(), path) if suffix == ".safetensors" else torch.save(tensors(), path)
    loaded = load_weights(str(path), "vgg19_bn")
    assert loaded.origin == f"file: mine{suffix}"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))  # what was loaded is no longer tied to the file
    assert torch.equal(loaded.state_dict["conv1.weight"], tensors()["conv1.weight"])


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_training_scripts_wrapping_is_taken_off(tmp_path, key):
    wrapped = {f"module.{name}": tensor.half() for name, tensor in tensors().items() if tensor.is_floating_point()}
    torch.save({"epoch": 3, key: wrapped}, tmp_path / "a.pth")
    loaded = load_weights(str(tmp_path / "a.pth"), "resnet18").state_dict
    assert loaded.keys() == {"conv1.weight", "bn1.bias"}
    assert {tensor.dtype for tensor in loaded.values()} == {torch.float32}
    assert torch.equal(loaded["bn1.bias"], torch.tensor([0.5, -2.0]))


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(1), "b": Hostile()}, "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match="holds more than tensors"):
        load_weights("a.pth", "resnet18")
    assert not Path("hostile-was-here").exists()


def test_small_files_do_not_become_large_tensors(tmp_path):
    """A compressed archive, and tensors whose many values are one, or none."""
    million = {"a": torch.zeros(1_000_000)}
    torch.save(million, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as whole, zipfile.ZipFile(tmp_path / "b.pth", "w") as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name), zipfile.ZIP_DEFLATED)
    assert (tmp_path / "b.pth").stat().st_size < 10_000
    assert torch.equal(torch.load(tmp_path / "b.pth")["a"], million["a"])  # torch reads it
    one = torch.zeros(1)
    torch.save({"a": one.as_strided((10**6, 10**6), (0, 0))}, tmp_path / "c.pth")
    torch.save({str(number): one.expand(1000) for number in range(1000)}, tmp_path / "d.pth")
    torch.save({"a": torch.zeros(10**6).to_sparse()}, tmp_path / "e.pth")
    torch.save({"a": torch.empty(10**12, device="meta")}, tmp_path / "f.pth")
    torch.save({"a": one.as_strided((10**6, 10**6), (0, 0))}, tmp_path / "g.pth", _use_new_zipfile_serialization=False)
    for name in "bcdefg":
        with pytest.raises(WeightsError) as caught:
            load_weights(str(tmp_path / f"{name}.pth"), "resnet18")
        assert "state_dict()" in caught.value.hint


def test_a_tar_archive_of_the_oldest_torch_is_not_read(tmp_path):
    with tarfile.open(tmp_path / "a.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Hostile())
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        load_weights(str(tmp_path / "a.pth"), "resnet18")
    assert not Path("hostile-was-here").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_what_is_no_regular_file_is_not_opened(tmp_path, suffix):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"device{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(WeightsError, match="is a pipe, a socket or a device"):
            load_weights(str(tmp_path / f"{name}{suffix}"), "resnet18")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.safetensors", b"", "cannot be read as weights"),
        ("a.safetensors", CONTENT[:-1], "cannot be read as weights"),
        ("a.safetensors", (2**60).to_bytes(8, "little") + b"{}", "cannot be read as weights"),
        ("a.safetensors", save({"a": torch.tensor([1.0, float("nan")])}), "not finite, in a"),
        ("a.safetensors", save({"b": torch.tensor([float("inf")])}), "not finite, in b"),
        ("a.safetensors", save({}), "not a state dict"),
        ("a.pth", b"", "cannot be read as weights"),
        ("a.pth", b"PK\x03\x04 and so on", "cannot be read as weights"),
        ("a.pth", b"\x80\x02garbage", "cannot be read as weights"),
        ("a.png", b"\x89PNG", "not a kind of weights file"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=sentence) as caught:
        load_weights(str(tmp_path / name), "resnet18")
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {}, {"a": 3}, {1: torch.ones(1)}])
def test_other_content_is_not_a_state_dict(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="not a state dict"):
        load_weights(str(tmp_path / "a.pth"), "resnet18")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="There is no weights file") as caught:
        load_weights("imagenett", "resnet18")
    assert "imagenet" in caught.value.hint
    with pytest.raises(WeightsError, match="is a folder"):
        load_weights(str(tmp_path), "resnet18")


def test_importing_loads_no_heavy_library():
    script = "import sys, cfa_cli.weights.loading; print(sys.modules.keys() & {'torch', 'timm', 'huggingface_hub'})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
