"""The metrics page, read back by Prometheus' own parser."""

import os
from pathlib import Path

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from runtime.exposition import Family, Sample, page
from runtime.process_metrics import ProcessMetrics


@pytest.mark.parametrize(
    "value", ["plain", 'a "quoted" one', "back\\slash", "two\nlines", "ünïcode", "\\n", "", "{}=,"]
)
def test_label_values_come_back_as_they_were(value: str) -> None:
    sample = Sample(labels=[("first", value), ("second", "x")], value=3)
    family = Family(name="things_total", kind="counter", text="Things.", samples=[sample])
    [parsed] = text_string_to_metric_families(page([family]).decode())
    assert parsed.samples[0].labels == {"first": value, "second": "x"}
    assert parsed.samples[0].value == 3


@pytest.mark.parametrize("value", [0, 1, -2.5, 1e-9, 123456789012, 1e300, 1795305958.16])
def test_numbers_come_back_as_they_were(value: float) -> None:
    family = Family(name="g", kind="gauge", text="G.", samples=[Sample(value=value)])
    [parsed] = text_string_to_metric_families(page([family]).decode())
    assert parsed.samples[0].value == value


def test_a_family_keeps_its_kind_and_its_sentence() -> None:
    samples = [Sample(value=1, suffix="_count"), Sample(value=2, suffix="_sum")]
    family = Family(name="h", kind="histogram", text="a \\ b\nc", samples=samples)
    [parsed] = text_string_to_metric_families(page([family]).decode())
    assert (parsed.name, parsed.type, parsed.documentation) == ("h", "histogram", "a \\ b\nc")
    assert [sample.name for sample in parsed.samples] == ["h_count", "h_sum"]


def test_the_kernel_says_what_the_process_uses() -> None:
    process = ProcessMetrics(os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE"))
    found = {
        family.name: family.samples[0].value
        for family in text_string_to_metric_families(page(process.families()).decode())
    }
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    assert found["process_resident_memory_bytes"] == pytest.approx(resident, rel=0.2)
    assert found["process_virtual_memory_bytes"] > resident
    assert found["process_cpu_seconds"] > 0
    assert 0 < found["process_open_fds"] < found["process_max_fds"]
    started_s = psutil.Process().create_time()
    assert found["process_start_time_seconds"] == pytest.approx(started_s, abs=2)
