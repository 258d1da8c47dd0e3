"""A space of tiny networks, as its file."""

SPACE = """\
network: nexception_debug
fixed: {stem_dims: [8], entry_dims: [16], middle_depth: 1, exit_dim: 16, tail_dims: [16, 16]}
full: {entry_dims: [16, 24], middle_depth: 2}
choices:
  act: [relu, gelu, elu, celu]
  middle_kernel_size: [3, 5, 7]
  pool: [max, conv]
  norm: [batch, layer]
  middle_block: [plain, bottleneck]
  expansion: [2, 3]
conditions:
  expansion: {middle_block: bottleneck}
"""
