"""A stranger reads one compact file with pyarrow and numpy, by what the file says about itself."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from shards import open_dataset


def decoded_by_a_stranger(path) -> list[dict[str, np.ndarray]]:
    """Written from the metadata entry `decoding` alone, which says:

    Decode one record batch at a time, all rows of it together: lists of the rows, end to end.
    1. Planes. Columns X_0, X_1, ... of uint8 are the bytes of integers X = X_0 + 256 * X_1 + 65536 * X_2.
       input_ids, head_lengths, tail_lengths, tail_counts and label_rank are these integers.
    2. Ids. id_order has values in the first row only. table = those, then every other id from 0 to
       header.vocab_size - 1, ascending. Cut head_ids by head_lengths (tail_ids by tail_lengths) into one list x
       a position: its ids are table[x_0], table[x_0 + x_1], table[x_0 + x_1 + x_2], ...
    3. Masses. rest_mass has one code c for each position and each of header.temperatures, position-major. c =
       0: 0 exactly. c = 65535: 1 exactly. Else 1 / (1 + exp(-(c - 32768) / 64)); the logit is off by at most
       1/128, a logit above 32 reads as 32.
    4. Head log-probabilities. head_values goes with head_ids. With rest at T = 1: logprob_j = log(1 - rest) -
       log(sum over the head of exp(-value_i / 16)) - value_j / 16, where log(1 - rest) = -log(1 + exp((c -
       32768) / 64)), or 0 for c = 0. Off by at most 1/16 + 1/128 nat; value 255 means 15.9375 or more below the
       head's maximum.
    5. Nats. label_logprob = -c / 256, entropy = c / 256, tail_logprobs = -c / 256; c = 65535: infinite, 65534:
       255.99 or more. Off by at most 1/512.
    6. Order. Sort each head by value, then id (that is most likely first), each tail by id with its
       tail_counts.
    7. All other columns are as their documentation says.
    """
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        header = json.loads(reader.schema.metadata[b"header"])
        return [stranger_batch(reader.get_batch(b), header) for b in range(reader.num_record_batches)]


def stranger_batch(batch: pa.RecordBatch, header: dict) -> dict[str, np.ndarray]:
    def number(name: str) -> np.ndarray:
        planes = [n for n in batch.schema.names if n.rpartition("_")[0] == name]
        values = [np.array(batch.column(f"{name}_{k}").flatten()).astype(np.int64) for k in range(len(planes))]
        return sum(256**k * plane for k, plane in enumerate(values))

    order = number("id_order").tolist()
    table = np.array(order + sorted(set(range(header["vocab_size"])) - set(order)))
    c = number("rest_mass").reshape(-1, len(header["temperatures"]))
    rest = np.where(c == 0, 0.0, np.where(c == 65535, 1.0, 1 / (1 + np.exp(-(c - 32768) / 64))))
    result = {"rest_mass": rest.reshape(-1)}
    for name in ("input_ids", "head_lengths", "tail_lengths", "label_rank"):
        result[name] = number(name)

    heads, tails = [], []
    ends = np.cumsum(result["head_lengths"])
    cut = zip(np.split(number("head_ids"), ends), np.split(number("head_values"), ends), c[:, 0], strict=False)
    for steps, values, code in cut:
        others = 0.0 if code == 0 else -np.log(1 + np.exp((code - 32768) / 64))
        ids = table[np.cumsum(steps)]
        logprobs = others - np.log(np.exp(-values / 16).sum()) - values / 16 if len(ids) else values
        heads += sorted(zip(values.tolist(), ids.tolist(), logprobs.tolist(), strict=True))
    ends = np.cumsum(result["tail_lengths"])
    for steps, counts in zip(np.split(number("tail_ids"), ends), np.split(number("tail_counts"), ends), strict=True):
        tails += sorted(zip(table[np.cumsum(steps)].tolist(), counts.tolist(), strict=True))
    result["head_ids"] = np.array([i for _, i, _ in heads])
    result["head_logprobs"] = np.array([p for _, _, p in heads])
    result["tail_ids"], result["tail_counts"] = np.array([i for i, _ in tails]), np.array([k for _, k in tails])
    result["entropy"] = number("entropy") / 256
    result["label_logprob"] = -number("label_logprob") / 256
    return result


@pytest.mark.parametrize("vocab", [50, 300])
def test_a_decoder_written_from_the_metadata_alone_reads_what_our_reader_reads(build, tmp_path, vocab):
    header = build.make_header(12, encoding="compact", vocab_size=vocab, vocab_rows=vocab, head_size=6, head_mass=0.8)
    build.write_dataset(tmp_path, header, [build.make_row(i, header) for i in range(12)], rows_per_shard=12)
    path = tmp_path / "shard-00000.arrow"
    said = pa.ipc.open_file(path).schema.metadata[b"decoding"].decode()
    assert said.split() == decoded_by_a_stranger.__doc__.split("says:")[1].split()

    batches = decoded_by_a_stranger(path)
    rows = list(open_dataset(tmp_path).rows())
    assert sum(row.num_scored for row in rows) > 200
    for name in batches[0]:
        ours = np.concatenate([np.reshape(getattr(r if name == "input_ids" else r.capture, name), -1) for r in rows])
        theirs = np.concatenate([batch[name] for batch in batches])
        if ours.dtype == np.float32:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
