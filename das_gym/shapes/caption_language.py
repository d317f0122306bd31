"""Captions that distinguish a scene from others: those of Shapes-captions and Shapes-SNLI-VE.

A caption joins two facts, a relation of two objects and something about the rest of the scene, in the words of
`scene_language`. `may_be_true` tests it on any scene, which serves to choose captions of one scene alone, and false ones
with a word changed. Nothing is ambiguous: what is false is clearly false.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from das_gym.shapes.scene_language import OPPOSITES, RELATION_MARGIN, RELATIONS
from das_gym.shapes.scenes import COLORS, SHAPES, Scene, SceneObject, pick, plural

MAX_COUNTED = 5
"""Largest number in a caption."""


@dataclass(frozen=True)
class ObjectName:
    """A colour and a shape."""

    color: str
    shape: str

    def __str__(self) -> str:
        return f"a {self.color} {self.shape}"

    def changed(self) -> Iterator[ObjectName]:
        """Yield the names with another colour, or with another shape."""
        yield from (replace(self, color=color) for color in COLORS if color != self.color)
        yield from (replace(self, shape=shape) for shape in SHAPES if shape != self.shape)


@dataclass(frozen=True)
class RelationFact:
    """`a red circle left of a blue star`."""

    subject: ObjectName
    relation: str
    other: ObjectName

    def __str__(self) -> str:
        return f"{self.subject} {self.relation} {self.other}"

    def may_be_true(self, scene: Scene) -> bool:
        """Return whether it is true of the scene, or nearly so."""
        by = RELATIONS[self.relation]
        subjects = scene.matching(self.subject.color, self.subject.shape)
        others = scene.matching(self.other.color, self.other.shape)
        return any(by(a, b) > -RELATION_MARGIN for a in subjects for b in others if a is not b)

    def changed(self) -> Iterator[RelationFact]:
        """Yield the facts with one word changed."""
        yield replace(self, relation=OPPOSITES[self.relation])
        yield from (replace(self, subject=name) for name in self.subject.changed() if name != self.other)
        yield from (replace(self, other=name) for name in self.other.changed() if name != self.subject)


@dataclass(frozen=True)
class ExistenceFact:
    """`a green cross`."""

    name: ObjectName

    def __str__(self) -> str:
        return str(self.name)

    def may_be_true(self, scene: Scene) -> bool:
        """Return True if the fact holds in the scene."""
        return bool(scene.matching(self.name.color, self.name.shape))

    def changed(self) -> Iterator[ExistenceFact]:
        """Yield the facts with one word changed."""
        yield from (ExistenceFact(name) for name in self.name.changed())


@dataclass(frozen=True)
class CountFact:
    """`2 crosses` or `3 red objects`: exactly n of them."""

    number: int
    color: str | None = None
    shape: str | None = None

    def __str__(self) -> str:
        noun = f"{self.color} objects" if self.shape is None else plural(self.shape)
        return f"{self.number} {noun}"

    def may_be_true(self, scene: Scene) -> bool:
        """Return True if the fact holds in the scene."""
        return len(scene.matching(self.color, self.shape)) == self.number

    def changed(self) -> Iterator[CountFact]:
        """Yield the facts with one word changed."""
        yield from (replace(self, number=n) for n in range(2, MAX_COUNTED + 1) if n != self.number)
        if self.color is not None:
            yield from (replace(self, color=color) for color in COLORS if color != self.color)
        else:
            yield from (replace(self, shape=shape) for shape in SHAPES if shape != self.shape)


@dataclass(frozen=True)
class SceneCaption:
    """Facts that are all true of the scene from which they were drawn."""

    facts: tuple[RelationFact | ExistenceFact | CountFact, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.facts)) + "."

    def may_be_true(self, scene: Scene) -> bool:
        """Return whether it is true of the scene, or nearly so."""
        return all(fact.may_be_true(scene) for fact in self.facts)

    def changed(self, scene: Scene) -> list[SceneCaption]:
        """Return every caption that differs by one word and is clearly false of the scene, fact by fact."""
        captions = []
        for position, fact in enumerate(self.facts):
            for new in fact.changed():
                captions.append(SceneCaption((*self.facts[:position], new, *self.facts[position + 1 :])))
        return [caption for caption in captions if not caption.may_be_true(scene)]


def _name(item: SceneObject) -> ObjectName:
    return ObjectName(item.color, item.shape)


def _related(rng: np.random.Generator, scene: Scene) -> RelationFact | None:
    """Draw a relation that clearly holds between two objects with different names."""
    options = [
        RelationFact(_name(a), relation, _name(b))
        for a in scene.objects
        for b in scene.objects
        for relation, by in RELATIONS.items()
        if a.name != b.name and by(a, b) >= RELATION_MARGIN
    ]
    return pick(rng, options) if options else None


def _rest(rng: np.random.Generator, scene: Scene, related: RelationFact) -> ExistenceFact | CountFact | None:
    """Draw another fact: a number of objects, or an object of another name, each as likely where there are both."""
    counted = [CountFact(n, color=c) for c in COLORS if (n := len(scene.matching(color=c))) >= 2]
    counted += [CountFact(n, shape=s) for s in SHAPES if (n := len(scene.matching(shape=s))) >= 2]
    there = [ExistenceFact(name) for item in scene.objects if (name := _name(item)) not in (related.subject, related.other)]
    kinds: list[Sequence[ExistenceFact | CountFact]] = [kind for kind in (counted, there) if kind]
    return pick(rng, pick(rng, kinds)) if kinds else None


def sample_scene_caption(rng: np.random.Generator, scene: Scene) -> SceneCaption | None:
    """Draw a caption that is true of the scene; None where there is none."""
    related = _related(rng, scene)
    rest = related and _rest(rng, scene, related)
    return SceneCaption((related, rest)) if related and rest else None


def sample_false(rng: np.random.Generator, caption: SceneCaption, scene: Scene, count: int) -> list[SceneCaption]:
    """Draw captions with one word changed, clearly false of the scene: first the opposite relation where that is false."""
    options = caption.changed(scene)
    relations = {fact.relation for fact in caption.facts if isinstance(fact, RelationFact)}
    # The opposite relation has the same words of colour and shape: only the positions tell it apart.
    opposite = [o for o in options if any(isinstance(f, RelationFact) and f.relation not in relations for f in o.facts)]
    others = [option for option in options if option not in opposite]
    drawn = rng.choice(len(others), count - len(opposite), replace=False)
    return opposite + [others[int(i)] for i in drawn]
