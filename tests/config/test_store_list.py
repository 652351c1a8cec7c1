"""`config.data.stores`: what it may say, and what is refused before any work."""

import dataclasses

import pytest

from bertjax.cli import recipes
from bertjax.config import ConfigError, DataConfig
from bertjax.config.checks import validate
from bertjax.config.store_list import NamedStore, store_list


@pytest.mark.parametrize(
    ("stores", "expected"),
    [
        ("", []),
        ("a", [("a", None)]),
        ("a,b", [("a", None), ("b", None)]),
        ("a:0.7,b:0.3", [("a", 0.7), ("b", 0.3)]),
        ("stores/a/:7, /b:3e0", [("stores/a", 7.0), ("/b", 3.0)]),
        ("gs://bucket/a,gs://bucket/b", [("gs://bucket/a", None), ("gs://bucket/b", None)]),
        ("gs://bucket/a:1,b:2", [("gs://bucket/a", 1.0), ("b", 2.0)]),
        ("half:way/a", [("half:way/a", None)]),
        ("a@0.1", [("a", None, 0.1)]),
        ("me@home/a@1:2,b:1", [("me@home/a", 2.0, 1.0), ("b", 1.0)]),
    ],
)
def test_stores_and_weights(stores, expected):
    assert store_list(DataConfig(stores=stores)) == tuple(NamedStore(*e) for e in expected)


def test_one_store_is_a_list_of_one():
    assert store_list(DataConfig(store="x:y")) == (NamedStore("x:y"),)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"store": "a", "stores": "b"}, "set one of the two"),
        ({"stores": "a:0.5,b"}, "b has no weight, but others have"),
        ({"stores": "a:0,b:1"}, "the weight of a is '0'; expected a number above 0"),
        ({"stores": "a:-1,b:1"}, "the weight of a is '-1'"),
        ({"stores": "a:inf,b:1"}, "the weight of a is 'inf'"),
        ({"stores": "a:nan,b:1"}, "the weight of a is 'nan'"),
        ({"stores": "a:much,b:1"}, "the weight of a is 'much'"),
        ({"stores": "a:,b:1"}, "the weight of a is ''"),
        ({"stores": "a:1,a/:2"}, "a comes twice; give it the sum of the weights"),
        ({"stores": "a@0"}, "the share of a is '0'; expected a number above 0 and up to 1"),
        ({"stores": "a@1.5"}, "the share of a is '1.5'"),
        ({"stores": "a@half:1,b:1"}, "the share of a is 'half'"),
        ({"stores": "a@0.1,a@0.2"}, "a comes twice"),
        ({"stores": "a:1,,b:2"}, "a store is missing"),
        ({"stores": ":1,b:2"}, "a store is missing"),
    ],
)
def test_what_cannot_be_meant_is_refused(data, message):
    config = recipes.load_recipe("tiny")
    config.data = dataclasses.replace(config.data, **data)
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert message in str(error.value)
    assert f"config.data.stores = {data['stores']!r}" in str(error.value)
