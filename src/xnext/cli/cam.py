"""`xnext cam`: where a network looks."""

from pathlib import Path

from jsonargparse import Namespace

from xnext._figures import write_figure
from xnext._parser import Parser
from xnext.cli._common import CHECKPOINT_HELP, Verb, require_ending, require_known
from xnext.cli._measured import FURTHER_MODELS_HELP, load_networks
from xnext.data import decode_image, find_images
from xnext.errors import UserError

_MOST_IN_ONE_PICTURE = 64
_METHODS = ("gradcam", "gradcam++", "hirescam", "layercam")


def _cam_options(parser: Parser) -> None:
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="Pictures (or folders) to explain."
    )
    parser.add_argument(
        "--checkpoint", type=Path, nargs="+", metavar="RUN|FILE",
        help=f"{CHECKPOINT_HELP} Several are drawn side by side.",
    )  # fmt: skip
    parser.add_argument("--model", type=str, nargs="+", metavar="NAME", help=FURTHER_MODELS_HELP)
    parser.add_argument(
        "--target", type=str | None, metavar="CLASS",
        help="Name or index of the class to look for. Default: the most probable one of each image.",
    )  # fmt: skip
    parser.add_argument(
        "--method", type=str, default="gradcam", metavar="NAME", help=f"One of {', '.join(_METHODS)}."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="PNG", help="Picture to write.")


def _cam(arguments: Namespace) -> int:
    from xnext.evaluation import cam  # here, since it alone needs OpenCV and matplotlib

    require_ending(arguments.output, ".png")
    files = find_images(arguments.images)
    if len(files) > _MOST_IN_ONE_PICTURE:
        raise UserError(
            f"one picture shows up to {_MOST_IN_ONE_PICTURE} images, not {len(files)}; give fewer"
        )
    require_known("--method", arguments.method, _METHODS)
    images, names = [decode_image(path) for path in files], [path.name for path in files]
    explanations = []
    networks = load_networks(arguments.checkpoint or [], arguments.model or [], "cam")
    for source, classifier in networks:
        target = None if arguments.target is None else classifier.class_index(arguments.target)
        beside_others = len(networks) > 1 and classifier.named  # published weights go by their network's name
        called = Path(source).name if beside_others else None
        explanations.append(cam.explain(classifier, images, target, arguments.method, called))
    one = explanations[0]
    if len(explanations) > 1:
        figure = cam.draw_grid(names, explanations)
    else:
        figure = cam.draw(names, one.views, one.maps, one.verdicts)
    write_figure(arguments.output, figure, dpi=150)
    for one in explanations:
        for index in one.silent:
            print(f"no place of {names[index]} stands out for {one.verdicts[index]}, says {one.network}")
    print(f"wrote {arguments.output}")
    return 0


VERB = Verb(
    "Draw where the network looks: class-activation maps.", _cam_options, _cam,
    (
        "xnext cam seven.png --checkpoint runs/digits --output seven-map.png",
        "xnext cam photos/ --checkpoint runs/a runs/b --method layercam --output beside-each-other.png",
    ),
)  # fmt: skip
