"""Independent judges of generated texts: they read the objects of a scene that a text names."""

from das_gym.shapes.scenes import Scene, SceneObject
from das_gym.shapes.vqa import OPPOSITES, RELATION_MARGIN


def the_one(found: list[SceneObject]) -> SceneObject:
    (item,) = found
    return item


def objects_named(plural: str, scene: Scene) -> list[SceneObject]:
    """The `red objects` or the `circles`; a shape is read by how its plural begins."""
    if plural.endswith(" objects"):
        return [o for o in scene.objects if o.color == plural.removesuffix(" objects")]
    return [o for o in scene.objects if plural.startswith(o.shape)]


def related(first: str, words: str, second: str, scene: Scene) -> bool:
    """Whether the one `red circle` is `left of` the one `blue star`; it must be clear."""
    a, b = (the_one([o for o in scene.objects if o.name == name]) for name in (first, second))
    distance = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    assert max(distance[words], distance[OPPOSITES[words]]) >= RELATION_MARGIN, "ambiguous"
    return distance[words] > 0
