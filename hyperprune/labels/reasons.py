"""Why channels stay, and what its author can do about it, in the words that reports show."""

INPUT = "reads the model's input"
OUTPUT = "is the model's output"
CONSTANT = "meets a constant"
BROADCAST = "is broadcast over other channels"
COMPUTED = "its weight is computed in forward()"
MIXED_NORM = "a norm reads all channels together"
REDUCED = "a reduction reads all channels together"
PADDED = "meets zero padding of a fixed width"
SEVERAL_AXES = "channels lie along several axes here"
SIZE_IN_FORWARD = "a size written into forward() could not be repaired"
INEXACT = "no export without some of them was exact: forward() depends on their number"
RANDOM = "random numbers are drawn in its shape"
FIXED = "its weight is a buffer, which nothing gates"
EDITED = "its weight is changed by forward() in train mode, which a generated weight would not take"
PARAMETRIZED = "has a parametrization of the user's, such as spectral norm; remove_parametrizations() makes it plain"
TIED = "is shared between modules"
UNREAD = "no gated layer reads it"
SLID_OVER = "a convolution slides over them, so each is read beside its neighbours"
FOLLOWS = "a size is read off what the module is given, as in B, N, C = x.shape"
SAME_WIDTH = "nn.MultiheadAttention is as wide inside as the stream it reads"
AS_WIDE = (FOLLOWS, SAME_WIDTH)
ALONE = "is the only unit of its group"
PRODUCT = "meets a product between activations that is not attention by heads"
INDEXED = "is picked by an index, which would name other channels in a slim network"
KEPT = "is kept by the user"
POSITIONS = "mixes positions, which are not channels"
RECURRENT = "meets the units of a recurrent layer, which stay"
TOO_LARGE = "is used element by element and too large to label"

_SIZE = "let forward() take sizes from what it meets, such as x.shape[1] or self.conv.out_channels"
REMEDIES = {
    OUTPUT: "where nobody needs this output, hyperize a wrapper whose forward() leaves it out",
    CONSTANT: "make the constant a buffer of the module that adds it",
    SIZE_IN_FORWARD: _SIZE,
    INEXACT: _SIZE,
    FOLLOWS: "write -1 in place of that size: the channels then go without those that the module is given",
    RANDOM: "draw one number for all channels, in a shape with a 1 where they lie",
    FIXED: "make the buffer an nn.Parameter with requires_grad=False",
    ALONE: 'of attention, whose number of heads stands in forward(), hyperize(..., attention="width") thins the heads',
    KEPT: "take the layer out of keep, or name it in only",
}
