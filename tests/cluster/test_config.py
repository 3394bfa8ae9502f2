"""fleet.yaml: defaults, what is refused and in which words, and the one edit the project makes to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cluster.config import FleetConfig, register_quality
from cluster.errors import UserError

MODEL = "model: {source: owner/tiny}\n"


def of(text: str) -> FleetConfig:
    return FleetConfig.of(yaml.safe_load(text))


def refusal(text: str) -> str:
    with pytest.raises(UserError) as error:
        of(text)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_built_in_fleet() -> None:
    config = FleetConfig.built_in()
    assert config.model.name == "smollm2-135m"
    assert {name: variant.method for name, variant in config.variants.items()} == {
        "bf16": "none",
        "int8": "int8",
        "nf4": "nf4",
    }
    assert config.variants["bf16"].quality == 1.0
    assert set(config.slo_classes) == {"interactive", "standard", "exact", "throughput"}
    qualities = [config.variants[name].quality or 0 for name in ("bf16", "int8", "nf4")]
    assert qualities == sorted(qualities, reverse=True)
    assert qualities[2] > 0
    assert config.http.max_body_bytes == 4 * 2**20
    assert config.auth.max_concurrent_requests == 64
    assert all((config.replicas(name).min, config.replicas(name).max) == (1, 1) for name in config.variants)


def test_only_the_source_is_required() -> None:
    config = of(MODEL)
    assert config.model.name == "tiny"
    assert config.variants.keys() == FleetConfig.built_in().variants.keys()
    assert config.default_class == "standard"
    assert config.slo.resolve(None).name == "standard"
    assert refusal("engine: {}") == (
        "fleet.yaml: model: missing; give a section, at least {source: embedded:smollm2-135m}"
    )


def test_qualities_of_the_built_in_model_are_not_another_models() -> None:
    variants = of(MODEL).variants
    assert {name: variant.quality for name, variant in variants.items()} == {"bf16": 1.0, "int8": None, "nf4": None}


def test_a_file_of_its_own_classes_defaults_to_its_first() -> None:
    config = of(MODEL + "slo_classes: {fast: {ttft_ms: 100}, slow: {}}")
    assert config.default_class == "fast"
    assert config.slo_classes["fast"].ttft_ms == 100


def test_a_section_left_empty_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(MODEL + "auth:\n  # keys_file: keys.json\n")
    assert FleetConfig.load(file).auth.keys_file is None


def test_load_prefers_the_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FleetConfig.load().model.source == "embedded:smollm2-135m"
    Path("fleet.yaml").write_text(MODEL)
    assert FleetConfig.load().model.source == "owner/tiny"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "slo_classes: {interactive: {ttft_ms: -5}}",
            "slo_classes.interactive.ttft_ms: -5 is not > 0; give milliseconds",
        ),
        ("engine: {max_contxt: 4096}", "engine.max_contxt: unknown key; did you mean max_context?"),
        ("variants: {int8: {metod: int8}}", "variants.int8.metod: unknown key; did you mean method?"),
        ("engin: {}", "engin: unknown key; did you mean engine?"),
        (
            "variants: {g: {method: gptq}}",
            "variants.g: method gptq reads a checkpoint and none is named; make one with",
        ),
        (
            "variants: {g: {method: int7}}",
            "variants.g.method: 'int7' is not one of 'none', 'int8', 'nf4', 'fp8', 'gptq' or 'awq'",
        ),
        ("variants: {'a:b': {}}", "variants.a:b: "),
        ("variants: {}", "variants: "),
        ("http: {port: '80'}", "http.port: '80' is not a whole number; give a port, for example 8000"),
        ("http: {port: 70000}", "http.port: 70000 is not <= 65535"),
        ("engine: {max_context: true}", "engine.max_context: True is not a whole number"),
        ("engine: {memory_utilization: 1.5}", "engine.memory_utilization: 1.5 is not <= 1; give a fraction"),
        ("engine: {kv_capacity_tokens: 0}", "engine.kv_capacity_tokens: 0 is not > 0; give a number of tokens"),
        ("engine: {block_size: 17}", "engine.block_size: 17 is not one of 8, 16, 32, 64 or 128"),
        ("engine: [1]", "engine: [1] is not a section with keys of its own"),
        ("variants: {int8: 5}", "variants.int8: 5 is not a section with keys of its own"),
        ("default_class: fast", "default_class: no class 'fast'; known: exact, interactive, standard, throughput"),
        ("autoscaling: {replicas: {int4: {min: 1}}}", "autoscaling.replicas.int4: no such variant; did you mean int8?"),
        ("batches: {variant: int4}", "batches.variant: no variant 'int4'; did you mean int8?"),
        ("batches: {max_running: 0}", "batches.max_running"),
        ("autoscaling: {replicas: {int8: {min: 3}}}", "autoscaling.replicas.int8: max 1 is below min 3"),
        ("http: {host: 0.0.0.0}", "auth.keys_file: required, because http.host 0.0.0.0 is not loopback"),
        ("slo_classes: {a: {fallback: degrad}}", "slo_classes.a.fallback: 'degrad' is not one of"),
        ("slo_classes: {a: {deadline_s: .nan}}", "slo_classes.a.deadline_s: nan"),
    ],
)
def test_an_error_names_the_key_and_the_mend(text: str, words: str) -> None:
    assert refusal(MODEL + text).startswith(f"fleet.yaml: {words}")


def test_the_folder_of_batches_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = FleetConfig.of({"model": {"source": "embedded:smollm2-135m"}, "batches": {"folder": "here"}})
    assert config.batches.folder == str(tmp_path / "here")


def test_several_errors_are_counted() -> None:
    assert refusal(MODEL + "engine: {max_context: 1, token_budget: x}").endswith("(and 1 more)")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert FleetConfig.built_in().at(host, None).http.host == host


def test_an_address_from_the_command_line_is_checked_like_the_files() -> None:
    config = FleetConfig.built_in()
    assert config.at(None, 9000).http.port == 9000
    assert config.at(None, 9000).variants == config.variants
    assert "max_context" not in config.at(None, 9000).engine.model_fields_set, "a default is not a figure of the file"
    with pytest.raises(UserError, match=r"auth.keys_file: required, because http.host 0.0.0.0"):
        config.at("0.0.0.0", None)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    with pytest.raises(UserError, match="no such file"):
        FleetConfig.load(file)
    file.write_text("model: {source: a\n")
    with pytest.raises(UserError, match=r"fleet\.yaml: not YAML: line 2"):
        FleetConfig.load(file)
    file.write_text("model: {source: a}\nmodel: {source: b}\n")
    with pytest.raises(UserError, match="model is given twice"):
        FleetConfig.load(file)
    file.write_text("- a\n")
    with pytest.raises(UserError, match="holds no sections"):
        FleetConfig.load(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        FleetConfig.load(file)
    with pytest.raises(UserError, match="cannot be read"):
        FleetConfig.load(tmp_path)


COMMENTED = """\
# my fleet
model: {source: owner/tiny}   # the model
variants:
  bf16: {method: none}
  int8: {method: int8}        # fast
  nf4:
    # small
    method: nf4
  empty: {}
"""


@pytest.mark.parametrize("variant", ["int8", "nf4", "empty"])
def test_registering_a_quality_keeps_the_rest_of_the_file(tmp_path: Path, variant: str) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(COMMENTED)
    for quality in (0.98765, 0.5):
        assert register_quality(file, variant, quality) == file
        assert FleetConfig.load(file).variants[variant].quality == pytest.approx(quality, abs=1e-4)
    added = [line for line in file.read_text().splitlines() if line not in COMMENTED.splitlines()]
    assert len(added) == 1
    kept = [comment for comment in ("# my fleet", "# the model", "# fast", "# small") if comment in file.read_text()]
    assert len(kept) == 4


def test_registering_into_a_file_without_variants_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(MODEL)
    register_quality(file, "int8", 0.99)
    variants = FleetConfig.load(file).variants
    assert {name: variant.quality for name, variant in variants.items()} == {"bf16": 1.0, "int8": 0.99, "nf4": None}


def test_registering_without_a_file_copies_the_built_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    register_quality(None, "nf4", 0.9)
    config = FleetConfig.load()
    assert config.variants["nf4"].quality == 0.9
    assert config.slo_classes == FleetConfig.built_in().slo_classes


def test_registering_an_unknown_variant_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(COMMENTED)
    with pytest.raises(UserError, match="no such variant; did you mean nf4"):
        register_quality(file, "nf5", 0.9)
    assert file.read_text() == COMMENTED


@pytest.mark.parametrize(
    "variants",
    [
        "variants:\n  bf16: {}\n  nf4:\n    method: nf4  # small\n\n# the end\nhttp: {port: 1}\n",
        "variants:\n    bf16: {}\n    nf4: {method: nf4}  # small",
        "variants:\n  bf16:\n    method: none\n  nf4:\n    quality:\n      0.5\n# the end\n",
        "variants: {bf16: {}, nf4: {method: nf4}}  # small\n",
    ],
)
def test_registering_a_checkpoint_adds_it(tmp_path: Path, variants: str) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(MODEL + variants)
    before = FleetConfig.load(file).variants
    source = tmp_path / "made: by, us" / "#1"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    section = {"method": "int8", "source": str(source)}
    for quality in (0.9, 0.8):
        register_quality(file, "made", quality, section)
        after = FleetConfig.load(file).variants
        assert {name: after[name] for name in before} == before
        made = after["made"]
        assert (made.method, made.source, made.quality) == ("int8", str(source), quality)
        kept = [line for line in (MODEL + variants).splitlines() if line.strip() and "variants: {" not in line]
        assert [line for line in kept if line not in file.read_text().splitlines()] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.yaml", "made: by, us"]


def test_registering_what_the_file_cannot_hold_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(COMMENTED)
    with pytest.raises(UserError, match="method"):
        register_quality(file, "made", 0.9, {"method": "int7", "source": "/made"})
    assert file.read_text() == COMMENTED


def scaled(text: str) -> FleetConfig:
    return of(MODEL + f"autoscaling: {text}\n")


def test_a_fleet_is_autoscaled_where_a_minimum_is_below_its_maximum() -> None:
    assert not of(MODEL).is_autoscaled
    assert scaled("{replicas: {int8: {min: 1, max: 2}}}").is_autoscaled
    assert scaled("{replicas: {int8: {min: 0}}}").is_autoscaled
    assert scaled("{enabled: true, replicas: {int8: {max: 2}}}").is_autoscaled
    assert not scaled("{enabled: false, replicas: {int8: {max: 2}}}").is_autoscaled


def test_a_fixed_fleet_is_the_same_at_its_minima() -> None:
    fleet = scaled("{hold_s: 20, replicas: {int8: {min: 0, max: 2}}}")
    assert not fleet.fixed().is_autoscaled
    assert fleet.fixed().autoscaling.hold_s == 20
    assert fleet.fixed().replicas("int8") == fleet.replicas("int8")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{enabled: true}", "autoscaling.enabled: true, but no variant has a min below its max"),
        ("{hold_s: 0}", "autoscaling.hold_s: 0 is not > 0; give seconds"),
        ("{interval_s: 0.1}", "autoscaling.interval_s: 0.1 is not >= 1; give seconds"),
        ("{cold_start_s: soon}", "autoscaling.cold_start_s: 'soon' is not a number; give seconds"),
        ("{hysteresis: 1.5}", "autoscaling.hysteresis: 1.5 is not < 1; give a fraction"),
        ("{log: 5}", "autoscaling.log: 5 is not a text; give auto, null or a path"),
        ("{hold: 20}", "autoscaling.hold: unknown key; did you mean hold_s?"),
    ],
)
def test_mistakes_in_autoscaling_name_the_key(text: str, words: str) -> None:
    assert words in refusal(MODEL + f"autoscaling: {text}\n")
