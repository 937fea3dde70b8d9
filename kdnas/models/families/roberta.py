"""RoBERTa and the families that count positions as it does: XLM-R, CamemBERT and others."""

from transformers import PreTrainedConfig

from kdnas.models.families.base import Family, register


@register("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert")
@register("data2vec-text", "roberta-prelayernorm", "ibert", "markuplm")
class Roberta(Family):
    """Positions begin after the padding token's id."""

    def first_position(self, config: PreTrainedConfig) -> int:
        return config.pad_token_id + 1


@register("mpnet")
class MPNet(Family):
    """Positions begin after 1, whatever the padding token is."""

    def first_position(self, config: PreTrainedConfig) -> int:
        return 2
