"""What the logs of llama.cpp and vLLM say of memory. Excerpts are lines of public logs."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import modelyard
from modelyard.core.specs import Endpoint, ModelSpec, Placement, Task
from modelyard.engines.command import CommandEngine
from modelyard.engines.llamacpp import LlamaCpp
from modelyard.engines.reports import MOST_MIB, llamacpp, vllm
from modelyard.launchers.memory import host_mib
from modelyard.testing.fake_gpu import Book

ON_HOST = Placement("host", {"cpu": 100})
ONE = Placement("one", {"GPU-a": 100, "cpu": 10})
TWO = Placement("two", {"cpu": 10, "GPU-a": 100, "GPU-b": 100})


def lines(text: str) -> list[str]:
    return text.strip("\n").split("\n")


def loaded(text: str, path: str = "/m.gguf") -> list[str]:
    """The log of a model's load, as it begins in every build."""
    head = "llama_model_loader: loaded meta data with 32 key-value pairs and 46 tensors from "
    return [f"{head}{path} (version GGUF V3 (latest))", *lines(text)]


# ------------------------------------------------------------------------------------- llama.cpp

BUILT_IN = """
0.00.009.815 I load_tensors:   CPU_Mapped model buffer size =     2.15 MiB
0.00.010.064 I llama_context: constructing llama_context
0.00.010.076 I llama_context: n_ctx                 = 512
0.00.010.087 I llama_context:        CPU  output buffer size =     0.01 MiB
0.00.010.123 I llama_kv_cache:        CPU KV buffer size =     0.75 MiB
0.00.010.413 I llama_kv_cache: size =    0.75 MiB (   512 cells,   4 layers,  1/1 seqs), K (f16)
0.00.011.155 I sched_reserve:        CPU compute buffer size =     5.39 MiB
"""

# Build 9849 on an RTX 3090: recurrent state, and a draft context that is reserved twice.
VULKAN_DRAFT = """
0.03.296.611 I load_tensors:   CPU_Mapped model buffer size =   682.03 MiB
0.03.296.612 I load_tensors:      Vulkan0 model buffer size = 18163.06 MiB
0.08.021.436 I llama_context: n_ctx         = 8192
0.08.022.889 I llama_context: Vulkan_Host  output buffer size =     0.95 MiB
0.08.032.922 I llama_kv_cache:    Vulkan0 KV buffer size =   512.00 MiB
0.08.078.411 I llama_memory_recurrent:    Vulkan0 RS buffer size =   448.88 MiB
0.08.162.110 I sched_reserve:    Vulkan0 compute buffer size =   568.18 MiB
0.08.162.115 I sched_reserve: Vulkan_Host compute buffer size =   112.07 MiB
0.08.242.340 I srv    load_model: creating MTP draft context against the target model '/m.gguf'
0.08.242.368 I llama_context: n_ctx         = 8192
0.08.244.872 I llama_context: Vulkan_Host  output buffer size =     0.95 MiB
0.08.245.919 I llama_kv_cache:    Vulkan0 KV buffer size =    32.00 MiB
0.08.306.824 I sched_reserve:    Vulkan0 compute buffer size =   520.06 MiB
0.08.306.828 I sched_reserve: Vulkan_Host compute buffer size =   112.07 MiB
0.08.485.313 I sched_reserve:    Vulkan0 compute buffer size =   520.06 MiB
0.08.485.317 I sched_reserve: Vulkan_Host compute buffer size =   112.07 MiB
"""

CUDA_TWO = """
load_tensors:        CUDA0 model buffer size =   852.89 MiB
load_tensors:        CUDA1 model buffer size =  1065.46 MiB
load_tensors:   CPU_Mapped model buffer size =   308.23 MiB
llama_kv_cache:      CUDA0 KV buffer size =  1920.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =  1664.00 MiB
sched_reserve:      CUDA0 compute buffer size =   378.04 MiB
sched_reserve:      CUDA1 compute buffer size =   408.55 MiB
sched_reserve:  CUDA_Host compute buffer size =   268.05 MiB
"""

ROCM = """
load_tensors:        ROCm0 model buffer size =  1918.35 MiB
llama_kv_cache:      ROCm0 KV buffer size =   448.00 MiB
sched_reserve:      ROCm0 compute buffer size =   256.50 MiB
sched_reserve:  ROCm_Host compute buffer size =    20.01 MiB
"""

SYCL_2025 = """
llama_kv_cache_init:      SYCL0 KV buffer size =   128.00 MiB
llama_init_from_model: KV self size  =  128.00 MiB, K (f16):   64.00 MiB, V (f16):   64.00 MiB
llama_init_from_model:  SYCL_Host  output buffer size =     0.12 MiB
llama_init_from_model:      SYCL0 compute buffer size =   164.01 MiB
llama_init_from_model:  SYCL_Host compute buffer size =    20.01 MiB
"""

METAL = """
load_tensors:   CPU_Mapped model buffer size =   304.28 MiB
load_tensors:  MTL0_Mapped model buffer size =  2375.91 MiB
llama_kv_cache:       MTL0 KV buffer size =   288.00 MiB
sched_reserve:       MTL0 compute buffer size =   301.75 MiB
"""

SPLIT_2024 = """
llm_load_tensors: CUDA_Split buffer size = 21608.65 MiB
llm_load_tensors:        CPU buffer size =   510.04 MiB
llm_load_tensors:      CUDA0 buffer size =     2.58 MiB
"""

TWO_CACHES = """
load_tensors:        CUDA0 model buffer size =  1000.00 MiB
llama_kv_cache_iswa: creating non-SWA KV cache, size = 32768 cells
llama_kv_cache:      CUDA0 KV buffer size =   512.00 MiB
llama_kv_cache_iswa: creating     SWA KV cache, size = 32768 cells
llama_kv_cache:      CUDA0 KV buffer size =   100.50 MiB
"""

PROJECTOR = """
0.00.400.000 I load_tensors:        CUDA0 model buffer size =  1834.00 MiB
0.00.810.000 I clip_model_loader: model name:   Qwen3-Vl-30B-A3B-Instruct
0.00.856.041 I clip_ctx: CLIP using CUDA0 backend
0.00.857.000 I load_hparams: model size:         1033.29 MiB
0.01.030.317 I reserve_compute_meta:      CUDA0 compute buffer size =   704.79 MiB
0.01.030.323 I reserve_compute_meta:        CPU compute buffer size =   292.41 MiB
"""


@pytest.mark.parametrize(
    ("log", "placement", "held"),
    [
        (BUILT_IN, ON_HOST, {"cpu": 9}),
        (VULKAN_DRAFT, ONE, {"cpu": 909, "GPU-a": 20245}),
        (CUDA_TWO, TWO, {"cpu": 577, "GPU-a": 3151, "GPU-b": 3139}),
        (ROCM, ONE, {"cpu": 21, "GPU-a": 2623}),
        (SYCL_2025, ONE, {"cpu": 21, "GPU-a": 293}),
        (METAL, ON_HOST, {"cpu": 3270}),
        (METAL, Placement("unified", {"apple": 1}), {"cpu": 305, "apple": 2966}),
        (SPLIT_2024, ONE, {"cpu": 511, "GPU-a": 21612}),
        (TWO_CACHES, ONE, {"GPU-a": 1613}),
        (PROJECTOR, ONE, {"cpu": 293, "GPU-a": 3573}),
    ],
)
def test_buffers_add_up_on_the_device_where_they_lie(
    log: str, placement: Placement, held: Mapping[str, int]
) -> None:
    assert llamacpp(loaded(log), placement) == held


@pytest.mark.parametrize(
    ("log", "placement", "why"),
    [
        (SPLIT_2024, TWO, "the parts are not told"),
        ("load_tensors: Meta(CUDA0,CUDA1) model buffer size = 90.00 MiB", TWO, "nor are these"),
        (CUDA_TWO, ONE, "it took a card more than it was given"),
        (CUDA_TWO, ON_HOST, "it was given none"),
        (CUDA_TWO + ROCM.replace("ROCm", "Vulkan"), TWO, "two numberings, one list of cards"),
        ("load_tensors: RPC0[10.0.0.2:50052] model buffer size = 90.00 MiB", ONE, "elsewhere"),
    ],
)
def test_no_card_is_reported_where_the_log_does_not_tell_which(
    log: str, placement: Placement, why: str
) -> None:
    assert set(llamacpp(loaded(log), placement)) <= {"cpu"}, why


def test_cards_that_were_picked_among_many_are_taken_in_their_order() -> None:
    log = CUDA_TWO.replace("CUDA1", "CUDA5").replace("CUDA0", "CUDA3")

    assert llamacpp(loaded(log), TWO) == llamacpp(loaded(CUDA_TWO), TWO)


def test_a_model_that_is_loaded_again_replaces_itself_and_a_second_model_is_added() -> None:
    first, draft = loaded(ROCM), loaded(ROCM, "/draft.gguf")

    assert llamacpp([*first, *first], ONE) == {"cpu": 21, "GPU-a": 2623}
    assert llamacpp([*first, *draft], ONE) == {"cpu": 41, "GPU-a": 5246}


def test_a_load_that_only_counts_is_no_load() -> None:
    # Verbosity 5: `--fit` counts first, with the sizes that buffers would have.
    counted = loaded("0.00.009.660 I print_info: no_alloc              = 1\n" + ROCM.strip())

    assert llamacpp(counted, ONE) == {}
    assert llamacpp([*counted, *loaded(ROCM)], ONE) == {"cpu": 21, "GPU-a": 2623}


def test_a_server_that_sleeps_tells_nothing_until_it_has_loaded_again() -> None:
    asleep = [*loaded(ROCM), "0.01.021.091 I srv  handle_sleep: server is entering sleeping state"]

    assert llamacpp(asleep, ONE) == {}
    assert llamacpp([*asleep, *loaded(BUILT_IN)], ONE) == {"cpu": 9}


def test_a_log_whose_beginning_is_lost_tells_nothing() -> None:
    assert llamacpp(lines(CUDA_TWO), TWO) == {}


def test_the_built_in_server_reports_what_its_process_grows_by() -> None:
    models = Path(modelyard.__file__).parent / "demo_models"
    engine = LlamaCpp(sys.executable)
    told, measured = [], []
    for context in (512, 65536):
        spec = ModelSpec(
            "yard",
            "llamacpp",
            frozenset({Task.CHAT}),
            source=str(models / "yard-chat.gguf"),
            options={"ctx_size": context, "verbosity": 4},
        )
        argv = engine.command(spec, ON_HOST, Endpoint("127.0.0.1", 0)).argv
        pipe = subprocess.PIPE
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as server:
            assert server.stdout is not None
            said = []
            for line in server.stdout:
                said.append(line.decode().rstrip("\n"))
                if "yard is ready" in said[-1]:
                    break
            told.append(engine.memory_report(said, ON_HOST)["cpu"])
            measured.append(host_mib([server.pid]))
            server.kill()
    # Four layers of 2 x 96 values of 2 bytes per token of the cache, which is cleared and so
    # resident; the compute buffer is taken but not touched before it is used.
    cache = (65536 - 512) * 4 * 2 * 96 * 2 / 2**20
    assert told[1] - told[0] > cache
    assert measured[1] - measured[0] == pytest.approx(cache, rel=0.1)


# ------------------------------------------------------------------------------------------ vLLM

# RTX 2000 Ada, 0.26: the figures one by one, then the summary.
AWAKE = """
(EngineCore pid=79) INFO 07-30 07:10:01 [gpu_model_runner.py:5190] Model loading took 0.88 GiB memory and 2.171 seconds
(EngineCore pid=79) INFO 07-30 07:10:58 [gpu_worker.py:600] Available KV cache memory: 13.33 GiB
(EngineCore pid=79) INFO 07-30 07:11:20 [gpu_model_runner.py:6844] Graph capturing finished in 5 secs, took 0.24 GiB
(EngineCore pid=79) INFO 07-30 07:11:20 [gpu_worker.py:857] Free memory on device (15.89/16.0 GiB) on startup. Desired GPU memory utilization is (0.95, 15.2 GiB). Actual usage is 0.88 GiB for weight, 0.26 GiB for peak activation, 0.16 GiB for non-torch memory, and 0.24 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=14514713805` (13.52 GiB) to fit into requested memory, or `--kv-cache-memory=15258363904` (14.21 GiB) to fully utilize gpu memory. Current kv cache memory in use is 13.33 GiB.
"""  # noqa: E501

# 0.10.2: the cache in bytes.
IN_BYTES = """
(EngineCore_DP0 pid=3021) INFO 09-23 18:12:39 [gpu_worker.py:391] Free memory on device (78.66/79.19 GiB) on startup. Desired GPU memory utilization is (0.9, 71.27 GiB). Actual usage is 14.08 GiB for weight, 1.97 GiB for peak activation, 0.07 GiB for non-torch memory, and 0.67 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=58333988249` to fit into requested memory, or `--kv-cache-memory=66273897472` to fully utilize gpu memory. Current kv cache memory in use is 59212694937 bytes.
"""  # noqa: E501

# 0.28: weights and what lies outside PyTorch together.
CONSUMED = """
(Worker_TP{rank} pid=77{rank}) INFO 08-21 18:22:06 [gpu_worker.py:789] Free memory on device (94.05/95.01 GiB) on startup. Desired GPU memory utilization is (0.9, 85.51 GiB). Actual usage is {used} GiB for consumed memory (weights + non-torch), 0.76 GiB for peak activation, and 0.32 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with `--kv-cache-memory=29407858586` (27.39 GiB) to fit into requested memory, or `--kv-cache-memory=38581581312` (35.93 GiB) to fully utilize gpu memory. Current kv cache memory in use is 27.85 GiB.
"""  # noqa: E501

# A cache of a fixed size skips the profiling, and with it the summary.
FIXED = """
(EngineCore pid=11) INFO 10-03 04:18:50 [gpu_model_runner.py:5190] Model loading took 19.84 GiB memory and 12.823029 seconds
(EngineCore pid=11) INFO 10-03 04:19:20 [gpu_worker.py:621] Initial free memory 30.16 GiB, reserved 5.0 GiB memory for KV Cache as specified by kv_cache_memory_bytes config and skipped memory profiling.
(EngineCore pid=11) INFO 10-03 04:20:02 [model_runner.py:791] Graph capturing finished in 2 secs, took 0.20 GiB
"""  # noqa: E501

# The V0 engine: no prefix on the driver's lines, no rank on the others'.
V0 = """
INFO 04-23 14:48:40 [model_runner.py:1117] Model loading took 10.3000 GB and 9.033798 seconds
INFO 04-23 14:48:44 [worker.py:287] model weights take 10.80GiB; non_torch_memory takes 0.33GiB; PyTorch activation peak memory takes 1.01GiB; the rest of the memory reserved for KV Cache is 14.52GiB.
(VllmWorkerProcess pid=12897) INFO 04-23 14:48:44 [worker.py:287] model weights take 10.30GiB; non_torch_memory takes 0.33GiB; PyTorch activation peak memory takes 1.77GiB; the rest of the memory reserved for KV Cache is 14.26GiB.
"""  # noqa: E501

# With sleep mode, what lies outside PyTorch can come out negative.
NEGATIVE = """
(EngineCore pid=5) INFO 09-01 10:00:00 [gpu_worker.py:563] Available KV cache memory: 11.06 GiB
(EngineCore pid=5) INFO 09-01 10:00:30 [gpu_worker.py:857] Free memory on device (21.83/22.06 GiB) on startup. Desired GPU memory utilization is (0.8, 17.65 GiB). Actual usage is 8.28 GiB for weight, 1.02 GiB for peak activation, -3.58 GiB for non-torch memory, and 0.68 GiB for CUDAGraph memory.
"""  # noqa: E501

SLEEP = "(EngineCore pid=5) INFO 09-01 10:05:00 [gpu_worker.py:117] Sleep mode freed {} GiB memory, {} GiB memory is still in use."  # noqa: E501
WAKE = "(EngineCore pid=5) INFO 09-01 10:06:00 [abstract.py:333] It took 1.003154 seconds to wake up tags {'weights', 'kv_cache'}."  # noqa: E501


def gib(*parts: float) -> int:
    return math.ceil(sum(parts) * 1024)


@pytest.mark.parametrize(
    ("log", "held"),
    [
        (AWAKE, gib(0.88, 0.26, 0.16, 0.24, 13.33)),
        ("\n".join(lines(AWAKE)[:3]), gib(0.88, 13.33, 0.24)),
        ("\n".join(lines(AWAKE)[:1]), gib(0.88)),
        (IN_BYTES, gib(14.08, 1.97, 0.07, 0.67, 59212694937 / 2**30)),
        (CONSUMED.format(rank=0, used=56.89), gib(56.89, 0.76, 0.32, 27.85)),
        (FIXED, gib(19.84, 5.0, 0.2)),
        (V0, gib(10.3, 0.33, 1.77, 14.26)),
        (NEGATIVE, gib(8.28, 1.02, 0.68, 11.06)),
        ("\x1b[1;36m(EngineCore pid=79)\x1b[0;0m " + lines(AWAKE)[0].partition(") ")[2], gib(0.88)),
    ],
)
def test_vllm_tells_the_parts_of_what_it_holds(log: str, held: int) -> None:
    assert vllm(lines(log), ONE) == {"GPU-a": held}


def test_a_negative_size_of_the_graphs_is_not_counted() -> None:
    # A capture that freed more than it took.
    log = FIXED.replace("took 0.20 GiB", "took -0.73 GiB")

    assert vllm(lines(log), ONE) == {"GPU-a": gib(19.84, 5.0)}


def test_each_worker_speaks_for_the_card_of_its_rank() -> None:
    log = CONSUMED.format(rank=1, used=50.0) + CONSUMED.format(rank=0, used=56.89)

    assert vllm(lines(log), TWO) == {
        "GPU-a": gib(56.89, 0.76, 0.32, 27.85),
        "GPU-b": gib(50.0, 0.76, 0.32, 27.85),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("Worker_PP0_TP0", "Worker_PP0_TP1", "Worker_PP1_TP0", "Worker_PP1_TP1"),
        ("Worker_DP0_TP0_EP0", "Worker_DP0_TP1_EP1", "Worker_DP1_TP0_EP2", "Worker_DP1_TP1_EP3"),
        ("Worker_TP4", "Worker_TP5", "Worker_TP6", "Worker_TP7"),
        ("EngineCore_DP0", "EngineCore_DP1", "EngineCore_DP2", "EngineCore_DP3"),
        ("VllmWorker rank=0", "VllmWorker rank=1", "VllmWorker rank=2", "VllmWorker rank=3"),
        ("Worker_TP8", "Worker_TP9", "Worker_TP10", "Worker_TP11"),
    ],
)
def test_ranks_are_counted_as_vllm_counts_them(names: Sequence[str]) -> None:
    load = "({} pid={}) INFO 09-23 05:11:15 [gpu_model_runner.py:1] Model loading took {} GiB and"
    log = [load.format(name, 90 - rank, rank + 1) for rank, name in enumerate(names)]
    four = Placement("four", dict.fromkeys(("a", "b", "c", "d"), 1))

    assert vllm(reversed(log), four) == {"a": 1024, "b": 2048, "c": 3072, "d": 4096}


def test_a_line_that_one_worker_alone_prints_holds_for_all() -> None:
    one = lines(FIXED.replace("EngineCore", "Worker_TP0"))
    other = [one[0].replace("TP0", "TP1").replace("19.84", "10.0")]

    assert vllm([*one, *other], TWO) == {"GPU-a": gib(25.04), "GPU-b": gib(10.0, 5.0, 0.2)}
    assert vllm(one, TWO) == {"GPU-a": gib(25.04), "GPU-b": gib(25.04)}


def test_more_workers_than_cards_are_not_ours_to_place() -> None:
    log = "".join(CONSUMED.format(rank=rank, used=50) for rank in range(3))

    assert vllm(lines(log), TWO) == {}


def test_asleep_it_holds_what_it_did_not_free_whoever_else_is_on_the_card() -> None:
    log = [*lines(NEGATIVE), SLEEP.format(20.53, 1.15)]
    crowded = [*lines(NEGATIVE), SLEEP.format(20.53, 17.0)]
    leaky = [*lines(NEGATIVE), SLEEP.format(3.0, 19.0)]
    at_odds = [*lines(NEGATIVE), SLEEP.format(3.0, 2.0)]

    assert vllm(log, ONE) == vllm(crowded, ONE) == {"GPU-a": gib(0.51)}
    assert vllm(leaky, ONE) == {"GPU-a": gib(18.04)}
    assert vllm(at_odds, ONE) == {"GPU-a": gib(2.0)}


def test_one_workers_sleep_is_not_the_others() -> None:
    log = lines((CONSUMED.format(rank=0, used=50) + CONSUMED.format(rank=1, used=50)).strip())
    asleep = SLEEP.format(78.0, 1.5).replace("EngineCore pid=5", "Worker_TP1 pid=771")

    assert vllm([*log, asleep], TWO) == {"GPU-a": gib(78.93), "GPU-b": gib(0.93)}


def test_without_the_summary_it_holds_at_most_all_that_is_used_on_the_card() -> None:
    awake = lines(FIXED.replace("pid=11", "pid=5"))

    assert vllm([*awake, SLEEP.format(25.17, 3.23)], ONE) == {"GPU-a": gib(3.23)}
    assert vllm([*awake, SLEEP.format(20.0, 8.0)], ONE) == {"GPU-a": gib(8.0)}
    assert vllm([*awake, SLEEP.format(0.0, 90.0)], ONE) == {"GPU-a": gib(25.04)}
    assert vllm([SLEEP.format(25.17, 3.23)], ONE) == {"GPU-a": gib(3.23)}


def test_awake_again_it_holds_what_it_held() -> None:
    night = [*lines(NEGATIVE), SLEEP.format(20.53, 1.15), WAKE]

    assert vllm(night, ONE) == vllm(lines(NEGATIVE), ONE)
    assert vllm([*night, SLEEP.format(20.0, 1.68)], ONE) == {"GPU-a": gib(1.04)}


def test_the_fake_vllm_reports_what_its_books_say_less_the_drivers_context(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    book = Book.create(tmp_path / "gpus", ["8GiB"])
    stranger_mib, context_mib = 1000, 300
    command = [
        *(sys.executable, "-m", "modelyard.testing.fake_vllm", "serve", "some/model"),
        *("--port", str(unused_tcp_port), "--enable-sleep-mode", "--max-model-len", "2048"),
        *("--gpu-memory-utilization", "0.6", "--fake-weights", "3GiB", "--fake-load", "10ms"),
    ]
    environment = {"MODELYARD_FAKE_GPUS": str(book.folder), "VLLM_SERVER_DEV_MODE": "1"}
    with subprocess.Popen(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as server:
        assert server.stdout is not None
        said: list[str] = []

        def until(words: str) -> int:
            """Read on, and tell how far the books are from what was said."""
            assert server.stdout is not None
            for line in server.stdout:
                said.append(line.decode().rstrip("\n"))
                if words in said[-1]:
                    break
            (account,) = book.accounts()
            engine = sum(account.by_process_mib.values()) - account.by_process_mib[os.getpid()]
            return engine - CommandEngine().memory_report(said, ONE)["GPU-a"]

        try:
            book.hold(book.accounts()[0].id, {"stranger": stranger_mib}, pid=os.getpid())
            apart = [until("startup complete")]
            for route, words in (("/sleep?level=1", "fall asleep"), ("/wake_up", "wake up tags")):
                url = f"http://127.0.0.1:{unused_tcp_port}{route}"
                urllib.request.urlopen(urllib.request.Request(url, method="POST")).close()
                apart.append(until(words))
        finally:
            os.killpg(server.pid, signal.SIGKILL)
    # The log rounds to hundredths of a GiB, five times.
    assert apart == pytest.approx([context_mib] * 3, abs=26)


def test_a_command_may_start_either_engine() -> None:
    engine = CommandEngine()

    assert engine.memory_report(lines(AWAKE), ONE) == vllm(lines(AWAKE), ONE)
    assert engine.memory_report(loaded(CUDA_TWO), TWO) == llamacpp(loaded(CUDA_TWO), TWO)
    assert engine.memory_report(["listening on 127.0.0.1:8000"], TWO) == {}


# --------------------------------------------------------------------------------------- hostile

REAL = [
    *loaded(CUDA_TWO),
    *loaded(PROJECTOR),
    *lines(AWAKE + FIXED + V0 + NEGATIVE),
    SLEEP.format(20.53, 1.15),
    WAKE,
    "0.01.021.091 I srv  handle_sleep: server is entering sleeping state",
]
NUMBERS = st.one_of(
    st.sampled_from(["nan", "inf", "-1", "1e30", "9" * 16, "9" * 400, "0", "16777217.0", "1.2.3"]),
    st.floats().map(str),
    st.integers(0, 10**6).map(str),
)


@st.composite
def forged(draw: st.DrawFn) -> str:
    """A real line with other numbers, cut, or with something before or after it."""
    words = draw(st.sampled_from(REAL)).split(" ")
    for _ in range(draw(st.integers(0, 3))):
        words[draw(st.integers(0, len(words) - 1))] = draw(NUMBERS)
    return draw(st.text(max_size=3)) + " ".join(words) + draw(st.text(max_size=3))


@given(
    st.lists(st.one_of(st.sampled_from(REAL), forged(), st.text()), max_size=40),
    st.sampled_from([ON_HOST, ONE, TWO]),
)
def test_whatever_is_printed_only_sane_sizes_of_known_devices_are_told(
    log: list[str], placement: Placement
) -> None:
    told = CommandEngine().memory_report(log, placement)

    assert set(told) <= {"cpu", *placement.claims_mib}
    assert all(0 < mib <= MOST_MIB for mib in told.values())


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5), st.integers(0, 1000))
def test_other_lines_between_change_nothing(noise: list[str], seed: int) -> None:
    for log, placement in ((loaded(VULKAN_DRAFT), ONE), (lines(FIXED), ONE)):
        mixed = list(log)
        for shift, line in enumerate(noise):
            mixed.insert((seed * (shift + 1)) % (len(mixed) + 1), line)

        read = CommandEngine().memory_report
        assert read(mixed, placement) == read(log, placement)


@pytest.mark.parametrize(
    "line",
    [
        "load_tensors: CUDA0 model buffer size = nan MiB",
        "load_tensors: CUDA0 model buffer size = -5.00 MiB",
        "load_tensors: CUDA0 model buffer size = 1e3 MiB",
        "load_tensors: CUDA0 model buffer size = 99999999999.00 MiB",
        f"load_tensors: CUDA0 model buffer size = {'9' * 5000} MiB",
        "load_tensors: CUDA0 model buffer size = 5.00 MiB and so on",
        "the prompt was: load_tensors: CUDA0 model buffer size = 5.00 MiB",
        "~llama_context: CUDA0 compute buffer size is 39.1719 MiB, matches expectation",
    ],
)
def test_a_line_that_is_no_buffers_is_not_read(line: str) -> None:
    assert llamacpp(loaded(line), ONE) == {}


def test_what_a_client_writes_is_not_taken_for_the_engines_word() -> None:
    logged = "(APIServer pid=1) INFO 09-01 10:00:00 [logger.py:43] Received request cmpl-1: prompt:"

    assert vllm([f"{logged} '{lines(AWAKE)[0]}'"], ONE) == {}
    assert vllm(["Model loading took 5.0 GiB memory and 1 seconds"], ONE) == {}


@pytest.mark.parametrize(
    "line",
    [
        " " * 10**6,
        "a: b" + " c" * 10**6,
        "load_tensors: " + "x" * 10**6 + " buffer size = 1 MiB",
        "(a) " * 10**6,
        "(a) INFO 09-01 10:00:00 [a.py:1] Free memory on device" + " Actual usage is" * 10**5,
        lines(AWAKE)[3].replace("in use is", "in use is x" * 10**5),
    ],
)
def test_a_long_line_takes_no_longer_than_its_beginning(line: str) -> None:
    # Backtracking over a million characters would not come back in this test's lifetime.
    assert llamacpp([*loaded(ROCM), line] * 20, ONE) == {"cpu": 21, "GPU-a": 2623}
    assert vllm([line] * 20, ONE) in ({}, {"GPU-a": gib(0.88, 0.26, 0.16, 0.24)})
