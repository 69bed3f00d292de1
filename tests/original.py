"""The original LLC code's network in plain torch, and its files.

It is written from its description and shares no code with llc: it ends in 1x1 convolutions, and binarises
`fc` in the forward pass.
"""

import numpy as np
import torch
from torch import nn


def conv(inputs, outputs, kernel, stride=1):
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


class Basic(nn.Module):
    expansion = 1

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), nn.BatchNorm2d(planes)
        self.downsample = shortcut(inputs, planes, stride)

    def forward(self, x):
        inner = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(inner + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs, planes, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 1), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = conv(planes, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.downsample = shortcut(inputs, 4 * planes, stride)

    def forward(self, x):
        inner = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return torch.relu(
            self.bn3(self.conv3(inner)) + (x if self.downsample is None else self.downsample(x))
        )


def shortcut(inputs, outputs, stride):
    return (
        None
        if stride == 1 and inputs == outputs
        else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    )


class OriginalResNet(nn.Module):
    """forward(normalised float images). num_classes=None: a model of instance codes, without `fc`."""

    def __init__(self, num_bits, num_classes, block=Bottleneck, depths=(3, 4, 6, 3), width=64):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 7, 2), nn.BatchNorm2d(width)
        inputs = width
        for i, depth in enumerate(depths):
            blocks, planes = [], width * 2**i
            for j in range(depth):
                blocks.append(block(inputs, planes, 2 if i and not j else 1))
                inputs = planes * block.expansion
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.fc_lr = conv(inputs, num_bits, 1)
        if num_classes is not None:
            self.fc = conv(num_bits, num_classes, 1)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.fc_lr(x.mean((2, 3), keepdim=True))
        if hasattr(self, "fc"):
            weight = self.fc.weight.detach().clone()
            weight[weight <= 0], weight[weight > 0] = -1.0, 1.0
            x = nn.functional.conv2d(x, weight)
        return x.flatten(1)


def resnet18(num_bits, num_classes, width=64):
    return OriginalResNet(num_bits, num_classes, Basic, (2, 2, 2, 2), width)


def random_values(model, seed=0):
    """Gives a model random weights, for evaluation.

    Batch norm's statistics are those of random pictures, so that the outputs differ from picture to picture.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.2, 0.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(normalised(pictures(16, seed)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.mul_(
                1.2
            )  # 50 random layers multiply rounding errors by 300; so, by 50, as trained ones may
    return model.eval()


def pictures(count, seed, size=64):
    """uint8 [count, 3, size, size]: blots of colour."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 4, 4, generator=generator)
    return (
        (255 * nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(0, 1))
        .round()
        .to(torch.uint8)
    )


def save_files(model, folder):
    """Writes model_best.pth as the original does, and codebook.npy if there is an fc -> the two paths."""
    folder.mkdir(exist_ok=True)
    state = nn.DataParallel(model).state_dict()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    torch.save(
        {
            "epoch": 100,
            "arch": "ResNet50",
            "state_dict": state,
            "best_acc1": 75.5,
            "best_acc5": 92.0,
            "best_train_acc1": 70.0,
            "best_train_acc5": 90.0,
            "optimizer": optimizer.state_dict(),
            "curr_acc1": 75.5,
            "curr_acc5": 92.0,
        },
        folder / "model_best.pth",
    )
    if hasattr(model, "fc"):
        np.save(
            folder / "codebook.npy", model.fc.weight.detach().numpy().reshape(-1, model.fc_lr.weight.shape[0])
        )
    return folder / "model_best.pth", folder / "codebook.npy"


def normalised(images):
    """uint8 [n, 3, H, W] -> float, as torchvision's ToTensor and Normalize give them."""
    mean, std = (
        torch.tensor([0.485, 0.456, 0.406])[:, None, None],
        torch.tensor([0.229, 0.224, 0.225])[:, None, None],
    )
    return (images.float() / 255 - mean) / std
