"""What a ResNet-18 consists of: summary, report, and one node from the inside.

pip install "itnet-compiler[zoo]"
python examples/inspect_resnet.py
"""

from __future__ import annotations

import torch
from torchvision.models import resnet18

import itnet


def main() -> None:
    """Unify a randomly initialised ResNet-18 and look around."""
    torch.manual_seed(0)
    model = resnet18(weights=None).eval()
    images = torch.randn(2, 3, 64, 64)
    unified = itnet.unify(model, images)

    print(unified)
    print(unified.report())

    node = unified.integrals["layer1.0.conv1"]
    print(f"\nlayer1.0.conv1 is a {node.origin}: a {node.family} kernel over {node.domain.describe()}")
    print(node.source())

    assert len(unified.integrals) == 22, "20 convolutions, one max-pooling, one global average"
    assert node.origin == "conv2d"
    assert node.family == "stationary"
    with torch.no_grad():
        for batch in (images, torch.randn(3, 3, 96, 80)):  # batch and image size stay free
            assert torch.equal(unified(batch), model(batch))
    graph = unified.to_networkx()
    print(f"as a networkx graph: {graph.number_of_nodes()} nodes, {graph.number_of_edges()} edges")


if __name__ == "__main__":
    main()
