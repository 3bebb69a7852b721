import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_imports_follow_the_contracts() -> None:
    linter = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_vidprep_needs_no_torch() -> None:
    program = (
        "import sys, vidprep, vidprep.cli, vidprep.datasets, vidprep.decode, vidprep.shard, vidprep.extract;"
        "print(sorted(name for name in ('torch', 'torchvision') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_help_of_vidprep_loads_nothing_heavy() -> None:
    program = (
        "import sys\nfrom vidprep.cli import main\n"
        "sys.argv = ['vidprep', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'pandas', 'av', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
