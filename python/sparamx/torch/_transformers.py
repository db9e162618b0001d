"""What Transformers would do to packed weights in silence."""

from __future__ import annotations

import functools
import sys
from typing import Any

from ._stand_in import StandIn


@functools.cache
def _guard(model: Any) -> None:
    """Makes ``save_pretrained`` of a model with packed weights an error; of others it is what it was."""
    original = model.save_pretrained

    @functools.wraps(original)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        # With adapters in the model it writes these alone.
        only_adapters = getattr(self, "_hf_peft_config_loaded", False)
        if not only_adapters and any(isinstance(module, StandIn) for module in self.modules()):
            raise ValueError(
                f"{type(self).__name__} has packed weights, which Transformers cannot load again: write it with "
                "sparamx.torch.save(model, folder), and read it with sparamx.torch.from_pretrained(folder) or "
                "sparamx.torch.load(model, folder); a Trainer needs save_strategy='no'"
            )
        return original(self, *args, **kwargs)

    model.save_pretrained = save_pretrained


def guard() -> None:
    """To be called when there are packed weights. Transformers has no place to ask, so its class is changed, once it is there."""
    modeling = sys.modules.get("transformers.modeling_utils")
    if modeling is not None:
        _guard(modeling.PreTrainedModel)
