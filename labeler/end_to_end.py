"""A model and the image tower that gives it its visual tokens, fine-tuned as one; and how its pictures are augmented.

    pixels [B, 3, H, W] -> image tower -> visual_tokens [B, V, D_image] --+
                                                                          model -> logits [B, L]
    input_ids [B, T] -----------------------------------------------------+

The model is any of `labeler.models` and does not know where its visual tokens come from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from labeler.batches import DrawnPairs, Pair, StorePairs
from labeler.encoders.weights import TOWER
from labeler.errors import UsageError

if TYPE_CHECKING:
    from labeler.encoders.image import ImageEncoder


class EndToEnd(nn.Module):
    """A model behind its image tower: a batch with `pixels` (see `labeler.batches`) in, logits [B, L] out.

    The tower stays in evaluation mode while its weights are trained. Batch norms keep the statistics that they came with: those
    of 32 augmented pictures are noise beside a million's, and what is trained would not be what predicts, where no picture's
    tokens may hang on the others in its batch. Of its weights those are trained that the visual tokens hang on.
    """

    main_input_name = "input_ids"
    tower_weights = ("tower.",)  # trained at a rate of their own

    def __init__(self, model: PreTrainedModel, encoder: ImageEncoder):
        """Put `encoder` in front of `model`; raises UsageError when it is a detector."""
        super().__init__()
        if encoder.regions:
            raise UsageError(
                f"the image encoder {encoder.name!r} is a detector, which cannot be fine-tuned: no gradient says which regions "
                "to keep; leave out --finetune-image, or preprocess with another --image-encoder"
            )
        self.model, self.tower, self.encoder = model, encoder.module, encoder
        self.new_weights = tuple(f"model.{name}" for name in cast("tuple[str, ...]", model.new_weights))
        parameters = list(self.tower.requires_grad_(True).parameters())
        with torch.enable_grad():
            seen = encoder.backbone(torch.zeros(1, 3, encoder.size, encoder.size, device=parameters[0].device)).sum()
        for parameter, gradient in zip(
            parameters, torch.autograd.grad(seen, parameters, allow_unused=True), strict=True
        ):
            parameter.requires_grad_(gradient is not None)
        self.register_state_dict_post_hook(make_contiguous)

    def train(self, mode: bool = True) -> EndToEnd:
        """Set the model's mode; the tower's stays."""
        super().train(mode)
        self.tower.eval()
        return self

    @property
    def config(self) -> Any:
        """Return the model's config."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        return self.model.device

    def forward(
        self, input_ids: Tensor, text_mask: Tensor, pixels: Tensor, visual_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Return logits [B, L], and the loss where labels are given."""
        output: SequenceClassifierOutput = self.model(
            input_ids, text_mask, *self.see(pixels, visual_mask), labels=labels
        )
        return output

    def features(self, input_ids: Tensor, text_mask: Tensor, pixels: Tensor, visual_mask: Tensor) -> Tensor:
        """Return what the model's head reads."""
        features: Tensor = self.model.features(input_ids, text_mask, *self.see(pixels, visual_mask))  # type: ignore[operator]
        return features

    def see(self, pixels: Tensor, visual_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return visual tokens [B, V, D_image] and their mask [B, V]; only pictures that are there are shown to the tower."""
        present = visual_mask.any(dim=1)
        shape = len(pixels), self.encoder.tokens, self.encoder.width
        tokens = torch.zeros(shape, device=pixels.device)
        if present.any():
            tokens[present] = self.encoder.backbone(self.encoder.normalised(pixels[present])).float()
        return tokens, present.unsqueeze(1).expand(shape[:2])

    def save(self, folder: Path) -> None:
        """Write the model as one that reads visual tokens is written, and the tower into a folder of its own inside."""
        self.model.save_pretrained(folder)
        self.encoder.save(folder / TOWER)


def reader(model: Any) -> Any:
    """Return the model that reads visual tokens: `model` itself, or the one behind its image tower."""
    return model.model if isinstance(model, EndToEnd) else model


def make_contiguous(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """Make a state dict's tensors contiguous, which safetensors asks for and channels-last weights are not."""
    state.update({name: value.contiguous() for name, value in state.items()})


def augmentation(size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return the `light` augmentation of pixels [3, H, W] uint8; `size` is (h, w) of what it gives.

    A crop of 70 to 100 % of the picture, and a little of brightness, contrast and saturation. No flip: in a mirror writing cannot
    be read, and posts and drawings are full of it. No hue: a text may name the colour.
    """
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=(0.7, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
    ])  # fmt: skip


class AugmentedPictures(DrawnPairs):
    """Pairs whose pictures are augmented.

    What a picture shows decides how, so that with several texts it is the same picture to all of them: pretraining must not
    learn to tell it from itself.
    """

    def __init__(self, pairs: StorePairs, augment: Callable[[Tensor], Tensor], seed: int):
        """Augment the pictures of `pairs`."""
        self.augment = augment
        super().__init__(pairs, seed)

    def drawn(self, pair: Pair, index: int) -> Pair:
        """Return the pair with its picture augmented."""
        if not pair.has_image or pair.pixels is None:
            return pair
        with torch.random.fork_rng(devices=[]):  # dropout draws from the same generator
            state = np.random.SeedSequence([self.seed, self.epoch, crc32(pair.pixels.tobytes())]).generate_state(1)
            torch.default_generator.manual_seed(int(state[0]))  # torch.manual_seed would set the GPU's too
            return pair._replace(pixels=self.augment(torch.from_numpy(pair.pixels)).numpy())
