"""The probe file comes back exactly, and not at all when it was touched."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest

from shards import ShardError, read_probe, write_probe


def records(count: int, vocab_size: int = 40) -> list[tuple[int, int, np.ndarray]]:
    rng = np.random.default_rng(count)
    return [(i // 3, i % 3, rng.normal(-4, 2, vocab_size).astype(np.float16)) for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 32, 71])
def test_a_probe_reads_back_exactly(tmp_path, count):
    written = records(count)
    write_probe(tmp_path / "probe.arrow", iter(written), 40)
    probe = read_probe(tmp_path / "probe.arrow")
    assert probe.logprobs.shape == (count, 40)
    assert probe.val_row.tolist() == [row for row, _, _ in written]
    assert probe.position.tolist() == [position for _, position, _ in written]
    assert all(np.array_equal(a, b) for a, (_, _, b) in zip(probe.logprobs, written, strict=True))


def test_equal_probes_have_equal_bytes_and_a_hash_that_sha256sum_reads(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_probe(tmp_path / name / "probe.arrow", records(50), 40)
    assert (tmp_path / "a/probe.arrow").read_bytes() == (tmp_path / "b/probe.arrow").read_bytes()
    command = ["sha256sum", "--check", "probe.arrow.sha256"]
    assert subprocess.run(command, cwd=tmp_path / "a", capture_output=True).returncode == 0


def test_any_flipped_bit_cut_or_lost_file_is_caught(tmp_path):
    path = tmp_path / "probe.arrow"
    write_probe(path, records(40), 40)
    for file in (path, tmp_path / "probe.arrow.sha256"):
        whole = file.read_bytes()
        for bit in np.random.default_rng(1).integers(0, 8 * len(whole), 100):
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(flipped)
            with pytest.raises(ShardError, match=r"damaged .*run the dump again"):
                read_probe(path)
        file.write_bytes(whole[:-1])
        with pytest.raises(ShardError, match="damaged"):
            read_probe(path)
        file.unlink()
        with pytest.raises(ShardError, match="missing; run the dump again"):
            read_probe(path)
        file.write_bytes(whole)


def test_an_error_while_writing_leaves_the_old_probe(tmp_path):
    path = tmp_path / "probe.arrow"
    write_probe(path, records(3), 40)

    def failing():
        yield from records(35)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_probe(path, failing(), 40)
    assert len(read_probe(path).position) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == ["probe.arrow", "probe.arrow.sha256"]
