"""Options of the commands that measure speed."""

import torch
from jsonargparse import Namespace

from xnext._parser import Parser, yes_no
from xnext.cli._common import at_least, require_known
from xnext.errors import UserError
from xnext.evaluation.throughput import DTYPES, LAYOUTS, Plan


def speed_options(parser: Parser, compiled: bool) -> None:
    """Add what decides how speed is measured.

    Args:
        parser: Of the verb.
        compiled: Whether it measures compiled networks unless told otherwise.
    """
    parser.add_argument(
        "--batch-size", type=int, default=16, metavar="N", help="Images a call, halved until they fit."
    )
    parser.add_argument(
        "--dtype", type=str, default="fp32", metavar="TYPE", help=f"One of {', '.join(DTYPES)}."
    )
    parser.add_argument(
        "--layout", type=str, default="best", metavar="LAYOUT",
        help="Of images and weights in memory: nchw, nhwc, or best, which measures both.",
    )  # fmt: skip
    parser.add_argument(
        "--compile", action=yes_no(), default=compiled,
        help="Whether to measure compiled networks too, which take a minute or more each.",
    )  # fmt: skip
    parser.add_argument(
        "--repetitions", type=int, default=30, metavar="N", help="Calls of each way, in turn."
    )
    parser.add_argument(
        "--threads", type=int | None, metavar="N", help="Threads on a CPU; by default PyTorch's choice."
    )


def speed_plan(arguments: Namespace, image_size: int | None = None, training: bool = False) -> Plan:
    """Return how to measure, after checking all that was said; set the threads.

    Raises:
        UserError: Something of it cannot be.
    """
    for name in ("batch_size", "repetitions"):
        at_least(arguments, name, 1)
    for name, known in (("dtype", DTYPES), ("layout", LAYOUTS)):
        require_known(f"--{name}", arguments[name], known)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    if arguments.dtype == "tf32" and device.type != "cuda":
        raise UserError("--dtype tf32 is a GPU's; on a CPU choose fp32 or bf16")
    if arguments.threads is not None:
        torch.set_num_threads(at_least(arguments, "threads", 1))
    return Plan(
        device, training, arguments.batch_size, image_size, arguments.repetitions, arguments.dtype,
        arguments.layout, arguments.compile,
    )  # fmt: skip
