"""Convolutions of all options."""

from torch import nn

from tests.zoo.member import network


def conv1d(r):
    net = nn.Sequential(nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), nn.Tanh(), nn.Conv1d(4, 2, 2, groups=2))
    return network(r, net, 3, 2, 9, kinds={"0": "conv1d", "2": "conv1d"})


def conv2d(r):
    net = nn.Sequential(
        nn.Conv2d(2, 3, (3, 1), padding="same", dilation=2, bias=False), nn.BatchNorm2d(3, eps=0.1), nn.ReLU(inplace=True),
        nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 2),
    )  # fmt: skip
    return network(r, net, 3, 2, 4, 4, kinds={"0": "conv2d", "1": "scale", "3": "conv2d", "6": "linear"})


def conv3d(r):
    net = nn.Sequential(
        nn.Conv3d(1, 2, 2, stride=(1, 2, 1)), nn.Tanh(), nn.ConvTranspose3d(2, 2, 2, bias=False), nn.Flatten()
    )
    return network(r, net, 2, 1, 2, 3, 2, kinds={"0": "conv3d", "2": "conv_transpose3d"})


def transposed(r):
    """Transposed convolutions with stride, padding, output padding, dilation, groups; depthwise convolution."""
    net = nn.Sequential(
        nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2), nn.Tanh(),
        nn.Conv1d(4, 4, 3, groups=4, padding=1), nn.Unflatten(2, (2, 3)),
        nn.ConvTranspose2d(4, 2, (2, 1), stride=(1, 2), padding=(2, 0), dilation=(3, 1)), nn.Tanh(), nn.Flatten(),
    )  # fmt: skip
    return network(r, net, 3, 2, 3, kinds={"0": "conv_transpose1d", "2": "conv1d", "4": "conv_transpose2d"})
