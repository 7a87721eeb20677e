"""Models without weights, on the meta device."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def meta_device_model(config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool = False) -> PreTrainedModel:
    """Build a config's model on the meta device, in evaluation mode."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )
    return model.eval()
