"""Attention over long sequences: no plain kernel, whose scores would not fit any memory."""

import pytest
import torch

from flashvideo.models import attention
from flashvideo.models.attention import refuse_plain_kernel


@pytest.fixture
def heads(monkeypatch):
    """Queries of 64 tokens, and a limit that their scores exceed."""
    monkeypatch.setattr(attention, "MAX_SCORE_BYTES", 1000)
    return torch.randn(1, 64, 2, 16)


def test_torchs_own_choice_is_taken_where_it_is_a_fused_kernel(heads):
    refuse_plain_kernel(heads, heads, heads, None)


def test_the_plain_kernel_is_refused_for_a_long_sequence(heads):
    with (
        torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]),
        pytest.raises(
            ValueError, match=r"attention over 64 tokens needs a fused kernel.*float32 on cpu.*bfloat16"
        ),
    ):
        refuse_plain_kernel(heads, heads, heads, None)


def test_the_plain_kernel_is_taken_for_a_short_sequence(heads, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORE_BYTES", 10**6)
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.MATH]):
        refuse_plain_kernel(heads, heads, heads, None)


def test_a_transformer_refuses_it_too(tiny_transformer, heads):
    transformer = tiny_transformer(1)
    transformer.set_attention_backend("_native_math")
    with pytest.raises(ValueError, match="needs a fused kernel"), torch.no_grad():
        transformer(torch.randn(1, 3, 8, 8, 8), torch.randn(1, 5, 12), torch.tensor(1.0))


def test_full_hd_would_exceed_the_limit():
    scores = 30 * 104_746**2 * 2
    assert scores > 100 * attention.MAX_SCORE_BYTES
