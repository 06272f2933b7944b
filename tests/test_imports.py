"""The core stays light: it imports neither Flax nor a data library."""

import subprocess
import sys


def test_the_core_imports_no_flax_and_no_data_library():
    program = (
        "import sys, metajax, metajax.losses\n"
        "heavy = {'flax', 'tensorflow_datasets', 'matplotlib', 'orbax', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
