"""What a device multiplies natively, asked by functions of torch that may go away."""

import pytest
import torch

from cfa_cli.model.device import native_bfloat16, number_type

CPU = torch.device("cpu")
QUESTIONS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@pytest.mark.parametrize("answers", [(True, False), (False, True), (False, False)])
def test_bfloat16_is_native_with_amx_or_avx512(monkeypatch, answers):
    for question, answer in zip(QUESTIONS, answers, strict=True):
        monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)
    assert native_bfloat16(CPU) == any(answers)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"cpu_name": "Intel Xeon", "amx_bf16": True}, "bfloat16"),
        ({"cpu_name": "Intel Xeon", "amx_bf16": False}, "float32"),
        ({"cpu_name": "AMD EPYC", "amx_bf16": False}, "bfloat16"),
        ({"cpu_name": "Intel Xeon"}, "bfloat16"),  # a torch that does not know AMX
    ],
)
def test_auto_takes_bfloat16_where_it_is_quicker(monkeypatch, processor, expected):
    monkeypatch.setattr("cfa_cli.model.device.native_bfloat16", lambda device: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    assert number_type("auto", CPU, quantisable=False) == expected


def test_a_torch_without_the_private_questions_computes_in_float32(monkeypatch):
    for question in QUESTIONS:
        monkeypatch.delattr(torch.cpu, question, raising=False)
    assert not native_bfloat16(CPU)
    assert number_type("auto", CPU, quantisable=False) == "float32"
