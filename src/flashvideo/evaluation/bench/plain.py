"""The plainest implementation of the same model: the classes of diffusers and transformers, called as they are.

The weights are the pipeline's own tensors, not copies. What our transformers have beyond CogVideoX's cannot be given to
diffusers' class: embedders of the noise step, of the number of frames and of pooled text, and absolute positions. What
they amount to is computed once, in `PlainTransformer.prepare`, and added by hooks, so that the results can be compared.
At a single step that is outside of the measurement, together with the tables of rotary embeddings and with putting text
and no text into one batch: the reference is spared all three, and ours does them in each step. In a whole run the
reference does them once for each stage.

The VAE's results can be compared only where diffusers cuts time into the chunks that ours has, see `plain_chunks`.

Shapes: B clips, F frames, H, W pixels; f, C, h, w of the latents; L text tokens, D channels of the text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import T5EncoderModel

from flashvideo.degradations.latent import degrade_latents
from flashvideo.models.cogvideox import SHARED_CONFIG_KEYS
from flashvideo.models.transformer import FlashVideoTransformer3DModel
from flashvideo.pipelines.euler import start_euler
from flashvideo.pipelines.two_stage import FlashVideoPipeline
from flashvideo.schedule import guidance_scale_at
from flashvideo.vae import ENCODE_FRAMES_PER_CHUNK


def plain_chunks(num_frames: int, per_chunk: int) -> list[int]:
    """Returns the lengths of the chunks into which diffusers' VAE cuts time: what is left over joins the first.

    Args:
        num_frames: Frames, or latent frames.
        per_chunk: As many of them as the VAE is told to take.

    >>> plain_chunks(49, 16), plain_chunks(25, 16), plain_chunks(13, 2)
    ([17, 16, 16], [25], [3, 2, 2, 2, 2, 2])
    """
    num_chunks = max(num_frames // per_chunk, 1)
    first = num_frames - (num_chunks - 1) * per_chunk
    return [first, *[per_chunk] * (num_chunks - 1)]


class PlainTransformer:
    """Diffusers' CogVideoX transformer with the weights of one of ours.

    Args:
        ours: The transformer whose weights it shares.
        noise_step: What ours is told of the latent degradation; None if it does not take that.

    Attributes:
        left_out: Parts of ours that it does not compute, each with its number of parameters.
        prepared: What else `prepare` and its caller do before a step, and ours in each step.

    Raises:
        ValueError: If ours carries a LoRA beside its weights.
    """

    def __init__(self, ours: FlashVideoTransformer3DModel, noise_step: int | None) -> None:
        if getattr(ours, "peft_config", None):
            raise ValueError(
                "the reference cannot share weights with a LoRA beside them; convert the model with its LoRA merged"
            )
        self._ours, self._noise_step = ours, noise_step
        self.left_out: Mapping[str, int] = {
            name: sum(one.numel() for one in getattr(ours, name).parameters())
            for name in (
                "noise_step_embedding",
                "num_frames_embedding",
                "pooled_text_embedding",
                "position_embedding",
            )
            if getattr(ours, name) is not None
        }
        rotary = ours.config.use_rotary_positional_embeddings
        self.prepared = (*(("tables of rotary embeddings",) if rotary else ()), "batching text and no text")
        config = {name: ours.config[name] for name in SHARED_CONFIG_KEYS}
        with init_empty_weights():
            model = CogVideoXTransformer3DModel(**config)
        weights = {
            name: one
            for name, one in ours.state_dict().items()
            if name.partition(".")[0] not in self.left_out
        }
        model.load_state_dict(weights, assign=True)
        model.norm_out.norm.eps = ours.config.norm_out_eps  # diffusers' class has one epsilon for all
        self._condition: Tensor | None = None  # (B, E)
        self._positions: Tensor | None = None  # (S, C)
        model.time_embedding.register_forward_hook(self._add_condition)
        model.patch_embed.register_forward_hook(self._add_positions)
        self.model = model.eval().requires_grad_(False)
        self._tables: tuple[Tensor, Tensor] | None = None

    def prepare(self, latents: Tensor, texts: Tensor) -> None:
        """Computes what does not change from step to step.

        Args:
            latents: (B, f, C, h, w), for their shape.
            texts: The embeddings (B, L, D) of a batch, in its order.
        """
        ours, dtype = self._ours, texts.dtype
        patch_size = ours.config.patch_size
        num_frames, height, width = latents.shape[1], *(side // patch_size for side in latents.shape[3:])
        if ours.config.use_rotary_positional_embeddings:
            self._tables = get_3d_rotary_pos_embed(
                ours.config.attention_head_dim,
                ((0, 0), (height, width)),
                (height, width),
                num_frames,
                device=texts.device,
            )
        self._condition = self._beyond_time(latents, texts)
        if ours.position_embedding is not None:
            self._positions = ours.position_embedding(latents.to(dtype))

    def guided(
        self, latents: Tensor, texts: Tensor, timestep: Tensor, scale: float, *, text_at: int
    ) -> Tensor:
        """One step's v with guidance, `v_uncond + w (v_cond - v_uncond)`, or without, if the batch holds one text.

        Args:
            latents: (1, f, C, h, w), float32.
            texts: Embeddings (2, L, D) of text and no text, or (1, L, D), as `prepare` was given.
            timestep: The network's time, 0-dimensional.
            scale: w.
            text_at: Which of the two is the text.

        Returns:
            (1, f, C, h, w), float32.
        """
        batch = len(texts)
        v = self.model(
            hidden_states=latents.to(texts.dtype).expand(batch, -1, -1, -1, -1),
            encoder_hidden_states=texts,
            timestep=timestep.expand(batch),
            image_rotary_emb=self._tables,
            return_dict=False,
        )[0].float()
        if batch == 1:
            return v
        v_cond, v_uncond = v[text_at : text_at + 1], v[1 - text_at : 2 - text_at]
        return v_uncond + scale * (v_cond - v_uncond)

    def _beyond_time(self, latents: Tensor, texts: Tensor) -> Tensor:
        """What ours adds to the time embedding: (B, E)."""
        ours = self._ours
        total = torch.zeros(len(texts), ours.config.time_embed_dim, device=texts.device, dtype=texts.dtype)

        def features(value: int) -> Tensor:
            values = torch.full((len(texts),), float(value), device=texts.device)
            return ours.time_proj(values).to(texts.dtype)

        if ours.num_frames_embedding is not None:
            total = total + ours.num_frames_embedding(features(latents.shape[1]))
        if ours.noise_step_embedding is not None:
            assert self._noise_step is not None
            total = total + ours.noise_step_embedding(features(self._noise_step))
        if ours.pooled_text_embedding is not None:
            total = total + ours.pooled_text_embedding(texts.amax(dim=1))
        return total

    def _add_condition(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        return output if self._condition is None else output + self._condition

    def _add_positions(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if self._positions is not None:
            output[:, -len(self._positions) :] += self._positions  # text tokens come first
        return output


class PlainModel:
    """Both stages by diffusers' and transformers' own classes, with the weights of a pipeline.

    Args:
        pipeline: The pipeline, with all of its networks on the device.

    Raises:
        ValueError: If Stage I carries a LoRA beside its weights.
    """

    def __init__(self, pipeline: FlashVideoPipeline) -> None:
        self._pipeline, self.preset = pipeline, pipeline.preset
        self.device = pipeline.vae.device
        with init_empty_weights():
            vae = AutoencoderKLCogVideoX.from_config(pipeline.vae.config)
        vae.load_state_dict(pipeline.vae.state_dict(), assign=True)
        # As many frames in a chunk as the released code and ours have: a group norm sees one chunk. Diffusers puts what
        # is left over into the first chunk and ours into the last, so that not all numbers of frames are cut alike.
        vae.num_sample_frames_batch_size = ENCODE_FRAMES_PER_CHUNK
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = None
        if pipeline.text_encoder is not None:
            with init_empty_weights():
                encoder = T5EncoderModel(pipeline.text_encoder.config)
            encoder.load_state_dict(pipeline.text_encoder.state_dict(), assign=True)
            self.text_encoder = encoder.eval().requires_grad_(False)
        self.noise_step = self.preset.stage2.noise_step
        stage2 = pipeline.stage2_transformer
        self.stage1 = PlainTransformer(pipeline.stage1_transformer, None)
        self.stage2 = PlainTransformer(stage2, self.noise_step if stage2.config.noise_step_embed else None)

    def encode_text(self, token_ids: Tensor) -> Tensor:
        """Token ids (1, L) -> (1, L, D)."""
        assert self.text_encoder is not None
        states: Tensor = self.text_encoder(token_ids).last_hidden_state
        return states

    def decode(self, latents: Tensor, scale: float) -> Tensor:
        """Scaled latents (1, f, C, h, w) -> pixels (1, F, 3, H, W) in [-1, 1], float32."""
        z = (latents / scale).transpose(1, 2).to(self.vae.dtype)
        video = self.vae.decode(z, return_dict=False)[0]
        return video.transpose(1, 2).float().clamp(-1, 1)

    def encode(
        self,
        preview: Tensor,
        enlarged: tuple[int, int],
        padded: tuple[int, int],
        *,
        posterior_noise: Tensor,
        noise: Tensor,
    ) -> Tensor:
        """Enlarges a preview, continues it to the size that the models take, encodes and degrades it.

        Args:
            preview: (1, F, 3, any height, any width) in [-1, 1].
            enlarged: Height and width to enlarge it to.
            padded: Height and width that the models take.
            posterior_noise: (1, f, C, h, w), samples the posterior.
            noise: (1, f, C, h, w), degrades.

        Returns:
            Scaled latents (1, f, C, h, w), float32.
        """
        frames = F.interpolate(preview[0], size=enlarged, mode="bilinear", antialias=True)
        below, right = padded[0] - enlarged[0], padded[1] - enlarged[1]
        frames = F.pad(frames, (0, right, 0, below), mode="reflect")
        posterior = self.vae.encode(frames.transpose(0, 1)[None].to(self.vae.dtype)).latent_dist
        mean, std = (part.float().transpose(1, 2) for part in (posterior.mean, posterior.std))
        latents = (mean + std * posterior_noise) * self.preset.stage2.latent_scale
        return degrade_latents(latents, self.noise_step, noise=noise)

    def texts(self, stage: int, text: Tensor, *, guided: bool) -> tuple[Tensor, int]:
        """The batch of text and no text (zeros) in the order that the stage has, and where the text is.

        Args:
            stage: 1 or 2.
            text: (1, L, D).
            guided: Whether there is guidance.
        """
        if not guided:
            return text, 0
        none = torch.zeros_like(text)
        return (torch.cat((none, text)), 1) if stage == 1 else (torch.cat((text, none)), 0)

    def run(
        self,
        texts: tuple[Tensor, Tensor],
        shapes: tuple[tuple[int, ...], tuple[int, ...]],
        enlarged: tuple[int, int],
        final: tuple[int, int],
        spatial: int,
        generator: torch.Generator,
    ) -> Tensor:
        """The whole way, with the model's own settings, in one window and without consistency.

        Schedulers are the pipeline's: diffusers' Euler at Stage II, and at Stage I ours, since diffusers has none
        that computes the same.

        Args:
            texts: Embeddings (1, L, D) of both stages.
            shapes: Latents' shapes (1, f, C, h, w) of both stages.
            enlarged: Height and width to enlarge the preview to.
            final: Height and width of the video.
            spatial: Pixels per latent pixel.
            generator: Source of all noise, in the pipeline's order.

        Returns:
            Pixels (1, F, 3, H, W) in [-1, 1], float32.
        """
        latents = randn_tensor(shapes[0], generator=generator, device=self.device)
        latents = self._sample_stage1(latents, texts[0], generator)
        preview = self.decode(latents, self.preset.stage1.latent_scale)
        posterior_noise, noise = (
            randn_tensor(shapes[1], generator=generator, device=self.device) for _ in range(2)
        )
        padded = (shapes[1][3] * spatial, shapes[1][4] * spatial)
        latents = self.encode(preview, enlarged, padded, posterior_noise=posterior_noise, noise=noise)
        latents = self._sample_stage2(latents, texts[1])
        pixels = self.decode(latents, self.preset.stage2.latent_scale)
        top, left = (enlarged[0] - final[0]) // 2, (enlarged[1] - final[1]) // 2
        return pixels[..., top : top + final[0], left : left + final[1]]

    def _sample_stage1(self, latents: Tensor, text: Tensor, generator: torch.Generator) -> Tensor:
        preset, scheduler = self.preset.stage1, self._pipeline.stage1_scheduler
        batch, text_at = self.texts(1, text, guided=preset.guidance_scale != 1)
        self.stage1.prepare(latents, batch)
        scheduler.set_timesteps(preset.num_inference_steps, device=self.device)
        for timestep in scheduler.timesteps:
            scale = guidance_scale_at(
                preset.guidance_schedule, preset.guidance_scale, int(timestep), preset.num_inference_steps
            )
            v = self.stage1.guided(latents, batch, timestep, scale, text_at=text_at)
            latents = scheduler.step(v, timestep, latents, generator=generator, return_dict=False)[0]
        return latents

    def _sample_stage2(self, latents: Tensor, text: Tensor) -> Tensor:
        preset = self.preset.stage2
        batch, text_at = self.texts(2, text, guided=preset.guidance_scale != 1)
        self.stage2.prepare(latents, batch)
        scheduler: Any = start_euler(
            self._pipeline.stage2_scheduler, preset.num_inference_steps, device=self.device
        )
        for timestep in scheduler.timesteps:
            v = self.stage2.guided(latents, batch, timestep, preset.guidance_scale, text_at=text_at)
            latents = scheduler.step(-v, timestep, latents, return_dict=False)[0]
        return latents
