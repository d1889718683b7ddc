"""COCO: one JSON object with `images` and `annotations`: captions, objects of named categories, or both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from labeler.errors import BadInputError
from labeler.records import Reject, Row, find_field
from labeler.sources import json_document
from labeler.sources.json_document import Document

EXPECTED = "COCO: an object with the lists `images` and `annotations`"


class Faulty(NamedTuple):
    """An entry that cannot be used: its id, the reject's code and message."""

    id: str | None
    code: str
    message: str


class Caption(NamedTuple):
    """One caption: its annotation's running number, and the annotation."""

    number: int
    fields: dict[str, Any]


def claims(path: Path) -> bool:
    """Return whether the beginning of `path` looks like COCO; raises nothing."""
    keys = json_document.head_keys(path)
    images = {("images", "[]", "id"), ("images", "[]", "file_name")} <= keys
    return images or ("annotations", "[]", "image_id") in keys


def read(path: Path) -> Iterator[Row | Reject]:
    """Yield a row {"id", "image", "text", "group"} a caption, its id IMAGE-ANNOTATION; then one for every image without any.

    `label` is the list of the image's categories where the file has categories, each once, None where one of
    its objects was rejected, since not all labels are known then; else the label field of the
    annotation or of its image, where one of them has any. `line` counts the annotations, or the images, from 1. The
    captions of an image have its id as group, so that they never lie in two splits.

    Rejects: entries that are no objects or lack a field, ids that lead nowhere. Raises BadInputError where the file is
    no JSON, or no object with both lists.
    """
    document = json_document.load(path, EXPECTED)
    found = document.value
    if not isinstance(found, dict):
        raise BadInputError(f"{path}: a JSON {type(found).__name__} on top; expected {EXPECTED}")
    for name in ("images", "annotations"):
        if not isinstance(found.get(name), list):
            raise BadInputError(f"{path}: no list {name!r}; expected {EXPECTED}")
    yield from Reading(path, document).rows()


class Reading:
    """One file as it is read: its images by their id, the names of its categories, and what was found for each image."""

    def __init__(self, path: Path, document: Document):
        """Read the images and categories of `document`; keep their rejects."""
        self.path, self.document = path, document
        self.rejects: list[Reject] = []
        self.images: dict[Any, tuple[int, dict[str, Any]]] = {}
        for number, image in enumerate(document.value["images"], 1):
            if faulty := self.faulty(image, f"image {number}", ("id", "file_name")):
                self.reject(number, faulty)
            elif image["id"] in self.images:
                self.reject(number, Faulty(str(image["id"]), "id-conflict", f"image {number}: its id stands twice"))
            else:
                self.images[image["id"]] = (number, image)
        self.categories = self.read_categories()
        self.labels: dict[Any, list[str]] = {}
        self.unsure: set[Any] = set()  # images of which an object was rejected, so that not all labels are known

    def reject(self, number: int, faulty: Faulty) -> None:
        """Keep the reject of one entry."""
        self.rejects.append(Reject(str(self.path), number, *faulty))

    def faulty(self, entry: Any, name: str, fields: tuple[str, ...]) -> Faulty | None:
        """Return why an entry cannot be used, or None: damaged, no object, or without one of `fields`."""
        if fault := self.document.fault_in(entry):
            return Faulty(None, fault.code, f"{name}: {fault.message}")
        if not isinstance(entry, dict):
            return Faulty(None, "not-an-object", f"{name}: a JSON {type(entry).__name__}, expected an object")
        identity = entry.get("id")
        shown = str(identity) if isinstance(identity, (str, int)) else None
        for field in fields:
            if not isinstance(entry.get(field), (str, int)):
                return Faulty(shown, "field-missing", f"{name}: no {field!r}, a string or a number")
        return None

    def read_categories(self) -> dict[Any, str]:
        """Return {id: name} of the categories; raises BadInputError where one has none, since all labels hang on them."""
        categories = self.document.value.get("categories") or []
        for number, category in enumerate(categories if isinstance(categories, list) else [categories], 1):
            if faulty := self.faulty(category, f"category {number}", ("id", "name")):
                raise BadInputError(f"{self.path}: {faulty.message}; expected objects with `id` and `name`")
        return {category["id"]: str(category["name"]) for category in categories}

    def rows(self) -> Iterator[Row | Reject]:
        """Yield all rows, and the rejects where they stand."""
        captions: list[Caption] = []
        for number, annotation in enumerate(self.document.value["annotations"], 1):
            if faulty := self.faulty_annotation(annotation, number):
                self.reject(number, faulty)
                self.note_unsure(annotation)
                continue
            if "caption" in annotation:
                captions.append(Caption(number, annotation))
            if "category_id" in annotation:
                names = self.labels.setdefault(annotation["image_id"], [])
                name = self.categories[annotation["category_id"]]
                if name not in names:
                    names.append(name)
        yield from self.rejects
        for number, annotation in captions:
            yield self.row(number, annotation["image_id"], annotation)
        captioned = {annotation["image_id"] for _, annotation in captions}
        for identity, (number, _) in self.images.items():
            if identity not in captioned:
                yield self.row(number, identity, None)

    def note_unsure(self, annotation: Any) -> None:
        """Note the image of a rejected annotation, unless that was nothing but a caption."""
        if isinstance(annotation, dict) and ("category_id" in annotation or "caption" not in annotation):
            image = annotation.get("image_id")
            if isinstance(image, (str, int)):
                self.unsure.add(image)

    def faulty_annotation(self, annotation: Any, number: int) -> Faulty | None:
        """Return why an annotation cannot be used, or None."""
        name = f"annotation {number}"
        if faulty := self.faulty(annotation, name, ("image_id",)):
            return faulty
        shown = f"{annotation['image_id']}-{annotation.get('id', number)}"
        if annotation["image_id"] not in self.images:
            return Faulty(shown, "image-unknown", f"{name}: no usable image has the id {annotation['image_id']!r}")
        if "caption" not in annotation and "category_id" not in annotation:
            return Faulty(shown, "field-missing", f"{name}: neither a caption nor a category_id")
        category = annotation.get("category_id")
        if "category_id" in annotation and (isinstance(category, (dict, list)) or category not in self.categories):
            return Faulty(shown, "category-unknown", f"{name}: no category has the id {category!r}")
        return None

    def row(self, number: int, identity: Any, annotation: dict[str, Any] | None) -> Row:
        """Return the row of a caption, or of an image that has none."""
        image = self.images[identity][1]
        own = identity if annotation is None else f"{identity}-{annotation.get('id', number)}"
        text = annotation["caption"] if annotation else None
        fields = {"id": str(own), "image": image["file_name"], "text": text, "group": str(identity)}
        if "split" in image:
            fields["split"] = image["split"]
        if self.categories:
            label = None if identity in self.unsure else self.labels.get(identity, [])
            return Row(str(self.path), number, fields | {"label": label})
        for entry in (annotation or {}, image):
            if name := find_field(entry, "labels", {}):
                return Row(str(self.path), number, fields | {"label": entry[name]})
        return Row(str(self.path), number, fields)
