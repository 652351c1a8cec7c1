"""The contents of a SentencePiece .model file.

The fields of sentencepiece_model.proto that bertjax reads, by their published numbers and defaults. The module
that sentencepiece ships for it (`sentencepiece_model_pb2`) needs a protobuf version that Apache Beam refuses.
"""  # noqa: E501

from __future__ import annotations

import functools
from typing import Any

UNIGRAM = 1  # TrainerSpec.ModelType
NORMAL, USER_DEFINED, BYTE = 1, 4, 6  # ModelProto.SentencePiece.Type

# message: [(name, number, type, label, default)], in the words of descriptor.proto.
_MESSAGES: dict[str, list[tuple[str, int, str, str, str]]] = {
    "Piece": [
        ("piece", 1, "STRING", "OPTIONAL", ""),
        ("score", 2, "FLOAT", "OPTIONAL", "0"),
        ("type", 3, "INT32", "OPTIONAL", str(NORMAL)),
    ],
    "TrainerSpec": [
        ("model_type", 3, "INT32", "OPTIONAL", str(UNIGRAM)),
        ("byte_fallback", 35, "BOOL", "OPTIONAL", "false"),
    ],
    "NormalizerSpec": [
        ("precompiled_charsmap", 2, "BYTES", "OPTIONAL", ""),
        ("add_dummy_prefix", 3, "BOOL", "OPTIONAL", "true"),
        ("remove_extra_whitespaces", 4, "BOOL", "OPTIONAL", "true"),
    ],
    "Model": [
        ("pieces", 1, "Piece", "REPEATED", ""),
        ("trainer_spec", 2, "TrainerSpec", "OPTIONAL", ""),
        ("normalizer_spec", 3, "NormalizerSpec", "OPTIONAL", ""),
    ],
}


def read_model(content: bytes) -> Any:
    """The message in a .model file: `pieces`, `trainer_spec` and `normalizer_spec`.

    Args:
        content: the bytes of a file that the library `sentencepiece` accepts.
    """
    return _model_class().FromString(content)


@functools.cache
def _model_class() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="bertjax/sentence_piece_model.proto", package="bertjax", syntax="proto2"
    )
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, number, kind, label, default in fields:
            field = described.field.add(name=name, number=number)
            field.label = field_type.Label.Value(f"LABEL_{label}")
            if kind in _MESSAGES:
                field.type = field_type.Type.Value("TYPE_MESSAGE")
                field.type_name = f".bertjax.{kind}"
            else:
                field.type = field_type.Type.Value(f"TYPE_{kind}")
                field.default_value = default
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("bertjax.Model"))
