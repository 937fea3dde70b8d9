"""DistilBERT: other names in the config, and heads with activations that are no modules of their own."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from kdnas.models.families.base import Family, register


@register("distilbert")
class DistilBert(Family):
    """The config class maps the other three of the five values itself."""

    names: Mapping[str, str] = {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
    layers = "transformer.layer"

    def apply_head(self, model: PreTrainedModel, states: Tensor) -> Tensor:
        part = model.get_submodule
        if hasattr(model, "vocab_projector"):  # a masked language model
            states = part("activation")(part("vocab_transform")(states))
            return part("vocab_projector")(part("vocab_layer_norm")(states))
        return part("classifier")(part("dropout")(functional.relu(part("pre_classifier")(states[:, 0]))))
