"""The page of a network's mistakes: each with its image, both classes, and where it looks for either."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from xnext._page import escape, figure, note, picture, section, write_page
from xnext.errors import shown
from xnext.evaluation.cam import explain, overlay
from xnext.evaluation.mistakes import Mistakes
from xnext.evaluation.report import Pass
from xnext.evaluation.sets import TestSet

_SURE = 0.95  # probability of a wrong answer from which on the label is worth a look
_PAIRS = 3  # of classes, told of such mistakes
_BAD = 20  # unreadable images, told by name
_AT_ONCE = 8  # images whose maps are made together, since gradients take much memory

_ABOUT = """Images are shown as far as the network sees them. The maps are made by Grad-CAM: what speaks for a
class has warm colours."""
_WORST = "The right class was given the least probability."
_SURPRISING = """By the product of three shares: the probability of the answer; of the other images of the
right class those recognised; of the other images with that answer those it is right for. The latter two are
counted with one image more on either side, so that where there are few they say little."""

_STYLE = """
body { max-width: 1280px }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); gap: 1rem }
.cards { align-items: start }
.card { border: 1px solid #dadce0; border-radius: .5rem; padding: .8rem; overflow-wrap: anywhere }
.card h3 { font-size: 1rem; margin: 0 } .card p { margin: .3rem 0 0; font-size: .8rem }
.file { font-family: ui-monospace, monospace; color: #5f6368 }
.views { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .5rem; margin-top: .6rem }
figure { margin: 0; font-size: .8rem; line-height: 1.35 }
img, .silent { width: 100%; height: auto; aspect-ratio: 1; border-radius: .25rem; display: block }
.silent { display: flex; align-items: center; justify-content: center; text-align: center; color: #5f6368 }
.silent { background: #f6f7f8 }
figcaption { margin-top: .25rem } .right { color: #137333 } .wrong { color: #b3261e }
"""


@dataclass(frozen=True)
class _Views:
    """What a network sees of an image, and where it looks for its answer and for the right class."""

    seen: Image.Image
    answer: np.ndarray
    right: np.ndarray


def write_mistakes(path: Path, how: Pass, test: TestSet, title: str, mistakes: Mistakes, count: int) -> None:
    """Write a page of the worst and the most surprising mistakes.

    Args:
        path: The file.
        how: The network.
        test: The images that the answers are to.
        title: What was measured on which images.
        mistakes: Among the answers.
        count: Most mistakes of either kind.

    Raises:
        UserError: The file cannot be written, or an image cannot be read any more.
    """
    worst, surprising = mistakes.worst(count), mistakes.most_surprising(count)
    chosen = list(dict.fromkeys(worst + surprising))
    cards = _Cards(how, test, mistakes, _look(how, test, mistakes, chosen))
    heading = f"Mistakes of {shown(how.classifier.name)}"
    parts = [
        f"<h1>{escape(heading)}</h1>",
        f'<p class="lead">{escape(shown(title))}</p>',
        f"<p>{mistakes.summary}{cards.doubts()}</p>",
        _unreadable(test, mistakes.answers.bad_images),
    ]
    if chosen:
        parts += [
            note(_ABOUT),
            section("The worst", note(_WORST), cards.draw(worst, drawn=[])),
            section("The most surprising", note(_SURPRISING), cards.draw(surprising, drawn=worst)),
        ]
    write_page(path, heading, "".join(parts), _STYLE)


def _unreadable(test: TestSet, bad: Sequence[int]) -> str:
    if not bad:
        return ""
    names = "".join(f"<li>{escape(shown(test.source.name(index)))}</li>" for index in bad[:_BAD])
    rest = f"<li>and {len(bad) - _BAD:,} more</li>" if len(bad) > _BAD else ""
    return f"<p>Unreadable, not counted:</p><ul>{names}{rest}</ul>"


def _look(how: Pass, test: TestSet, mistakes: Mistakes, chosen: Sequence[int]) -> dict[int, _Views]:
    """Return where the network looks in the images of some mistakes."""
    answers, found = mistakes.answers, dict[int, _Views]()
    batches = [chosen[start : start + _AT_ONCE] for start in range(0, len(chosen), _AT_ONCE)]
    for batch in how.watch(batches, "explaining"):
        places = mistakes.places[batch]
        images = [test.source.read(int(index)) for index in answers.sources[places]]
        said, right = (
            explain(how.classifier, images, test.places[classes].tolist())
            for classes in (answers.top[places, 0], answers.nearest[places])
        )
        for index, *views in zip(batch, said.views, said.maps, right.maps, strict=True):
            found[index] = _Views(*views)
    return found


@dataclass(frozen=True)
class _Cards:
    """Mistakes as cards of the page."""

    how: Pass
    test: TestSet
    mistakes: Mistakes
    views: dict[int, _Views]

    def draw(self, chosen: Sequence[int], drawn: Sequence[int]) -> str:
        """Return cards of mistakes in their order; of those drawn above already merely where they stand."""
        cards = []
        for rank, mistake in enumerate(chosen, start=1):
            above = drawn.index(mistake) + 1 if mistake in drawn else None
            link = f'<p><a href="#mistake-{mistake}">shown above as number {above} of the worst</a></p>'
            body = self._views(mistake) if above is None else link
            name = "" if above else f' id="mistake-{mistake}"'
            cards.append(
                f'<article class="card"{name}><h3>{rank}. {self._title(mistake)}</h3>'
                f"{self._file(mistake)}{body}{self._context(mistake)}</article>"
            )
        return f'<div class="cards">{"".join(cards)}</div>'

    def doubts(self) -> str:
        """Return a sentence on the mistakes that the network is so sure of that labels may be wrong."""
        answers, places = self.mistakes.answers, self.mistakes.places
        sure = np.flatnonzero(answers.confidence[places] >= _SURE)
        if not len(sure):
            return ""
        pairs = Counter(self._title(int(mistake)) for mistake in sure).most_common(_PAIRS)
        often = "; ".join(f"{pair}: {count:,}" for pair, count in pairs)
        most = "most often" if len(sure) > sum(count for _, count in pairs) else "they are"
        return (
            f". In {len(sure):,} of the mistakes the network is at least {_SURE:.0%} sure of its answer; look"
            f" there first for wrong labels ({most} {often})."
        )

    def _names(self, mistake: int) -> tuple[str, str]:
        """Return the right and the answered class."""
        answers, place = self.mistakes.answers, self.mistakes.places[mistake]
        columns = answers.nearest[place], answers.top[place, 0]
        right, said = (shown(self.how.classifier.classes[self.test.places[column]]) for column in columns)
        return right, said

    def _title(self, mistake: int) -> str:
        return escape("{} taken for {}".format(*self._names(mistake)))

    def _file(self, mistake: int) -> str:
        index = int(self.mistakes.answers.sources[self.mistakes.places[mistake]])
        return f'<p class="file">{escape(shown(self.test.source.name(index)))}</p>'

    def _views(self, mistake: int) -> str:
        answers, place, views = self.mistakes.answers, self.mistakes.places[mistake], self.views[mistake]
        right, said = self._names(mistake)
        sides = (
            ("its answer", "wrong", said, answers.confidence[place], views.answer),
            ("the right class", "right", right, np.exp(-answers.loss[place]), views.right),
        )
        figures = [figure(picture(views.seen, "the image"), "the image")]
        for role, kind, name, probability, heat in sides:
            caption = f'{role} <b class="{kind}">{escape(name)}</b><br>{100 * probability:.2f} %'
            figures.append(figure(_map(views.seen, heat, name), caption))
        return f'<div class="views">{"".join(figures)}</div>'

    def _context(self, mistake: int) -> str:
        right, said = self._names(mistake)
        recognised, others = self.mistakes.recognised[mistake]
        trusted, answers = self.mistakes.trusted[mistake]
        loss = self.mistakes.answers.loss[self.mistakes.places[mistake]]
        known = f"{recognised:,} of {others:,} other images of {right} recognised"
        true = f"{trusted:,} of {answers:,} other answers {said} right"
        return note(escape(f"loss {loss:.2f}; {known}; {true}"))


def _map(seen: Image.Image, heat: np.ndarray, name: str) -> str:
    if not heat.any():
        return '<div class="silent">no place stands out</div>'
    return picture(overlay(seen, heat), f"map for {name}")
