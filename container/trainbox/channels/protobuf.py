"""SageMaker's `aialgs.data.Record`, built when it is needed: no generated file that would age with the library.

https://docs.aws.amazon.com/sagemaker/latest/dg/cdf-training.html gives the schema.
"""

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "aialgs.data"
_TENSORS = {"Float32Tensor": "FLOAT", "Float64Tensor": "DOUBLE", "Int32Tensor": "INT32"}
_VALUES = {"float32_tensor": ("Float32Tensor", 2), "float64_tensor": ("Float64Tensor", 3)}
_VALUES |= {"int32_tensor": ("Int32Tensor", 7), "bytes": ("Bytes", 9)}


@cache
def record_class() -> Any:  # noqa: ANN401 - made at run time
    """The message class; in a pool of its own, so that another library may hold the same schema."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_schema())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Record"))


def _schema() -> Any:  # noqa: ANN401 - protobuf has no types here
    schema = descriptor_pb2.FileDescriptorProto(name="trainbox/record.proto", package=_PACKAGE, syntax="proto2")
    for name, kind in _TENSORS.items():
        tensor = schema.message_type.add(name=name)
        _add(tensor, "values", 1, kind, is_repeated=True)
        _add(tensor, "keys", 2, "UINT64", is_repeated=True)
        _add(tensor, "shape", 3, "UINT64", is_repeated=True)
    content = schema.message_type.add(name="Bytes")
    content.field.add(name="value", number=1, type=_type("BYTES"), label=_label("REPEATED"))
    _add(content, "content_type", 2, "STRING")
    value = schema.message_type.add(name="Value")
    value.oneof_decl.add(name="value")
    for name, (message, number) in _VALUES.items():
        _add(value, name, number, "MESSAGE", message=message).oneof_index = 0
    record = schema.message_type.add(name="Record")
    for name, number in (("features", 1), ("label", 2)):
        entry = record.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _add(entry, "key", 1, "STRING")
        _add(entry, "value", 2, "MESSAGE", message="Value")
        field = _add(record, name, number, "MESSAGE", message=f"Record.{entry.name}")
        field.label = _label("REPEATED")
    for number, name in enumerate(("uid", "metadata", "configuration"), start=3):
        _add(record, name, number, "STRING")
    return schema


def _add(
    owner: Any,  # noqa: ANN401 - protobuf has no types here
    name: str,
    number: int,
    kind: str,
    *,
    message: str = "",
    is_repeated: bool = False,
) -> Any:  # noqa: ANN401 - protobuf has no types here
    field = owner.field.add(name=name, number=number, type=_type(kind), label=_label("OPTIONAL"))
    if message:
        field.type_name = f".{_PACKAGE}.{message}"
    if is_repeated:
        field.label = _label("REPEATED")
        field.options.packed = True
    return field


def _type(name: str) -> Any:  # noqa: ANN401
    return getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name}")


def _label(name: str) -> Any:  # noqa: ANN401
    return getattr(descriptor_pb2.FieldDescriptorProto, f"LABEL_{name}")
