"""What a network gets wrong, and which of its mistakes are the worst and the most surprising."""

from dataclasses import dataclass

import numpy as np

from xnext.evaluation.answers import Answers


@dataclass(frozen=True)
class Mistakes:
    """The wrong answers among all that a network gave, and how surprising each is.

    How surprising is the product of three shares: the network's probability of its answer; the other images
    of the right class that it recognises; and the other images with that answer of which it is right. The
    latter two are told with one image more on either side, so that where there are few they say little.

    Attributes:
        answers: All answers.
        places: int64 [M], places of the wrong ones among them, in the order of the images.
        recognised: int64 [M, 2], of the other images of the right class, those recognised, and all.
        trusted: int64 [M, 2], of the other images with the same answer, those it is right for, and all.
    """

    answers: Answers
    places: np.ndarray
    recognised: np.ndarray
    trusted: np.ndarray

    @classmethod
    def of(cls, answers: Answers) -> "Mistakes":
        """Find the mistakes among answers."""
        hits, first, classes = answers.hits[:, 0], answers.top[:, 0], answers.right.shape[1]
        places = np.flatnonzero(~hits)
        counts = []
        for of in (answers.nearest, first):
            right, all_ = (np.bincount(values, minlength=classes) for values in (of[hits], of))
            counts.append(np.stack([right[of[places]], all_[of[places]] - 1], axis=1))
        return cls(answers, places, *counts)

    @property
    def surprise(self) -> np.ndarray:
        """How surprising each mistake is, float64 [M] in (0, 1)."""
        recognised, trusted = ((one[:, 0] + 1) / (one[:, 1] + 2) for one in (self.recognised, self.trusted))
        return self.answers.confidence[self.places] * recognised * trusted

    @property
    def summary(self) -> str:
        """How many images and mistakes there are, and the accuracy, in a line."""
        images, wrong = len(self.answers.loss), len(self.places)
        said = f"{wrong:,} mistake{'s' * (wrong > 1)}" if wrong else "no mistake"
        return f"{images:,} image{'s' * (images > 1)}, {said}, top-1 {100 * (1 - wrong / images):.2f} %"

    def worst(self, count: int) -> list[int]:
        """Return which mistakes have the largest losses, up to ``count``, the worst first."""
        return _largest(self.answers.loss[self.places], count)

    def most_surprising(self, count: int) -> list[int]:
        """Return which mistakes surprise most, up to ``count``, the most surprising first."""
        return _largest(self.surprise, count)


def _largest(values: np.ndarray, count: int) -> list[int]:
    return np.argsort(-values, kind="stable")[:count].tolist()
