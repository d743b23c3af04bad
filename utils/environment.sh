# Sourced by run_example.sh and run_tests.sh from the root of the project: an environment with the given requirement
# files installed. An active virtual environment is used as it is; otherwise .venv is made here.
if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
    if [ ! -x .venv/bin/python ]; then
        echo "making a virtual environment in .venv"
        python3 -m venv .venv
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi
python3 -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed"'
for requirements in "$@"; do
    python3 -m pip install --quiet --disable-pip-version-check -r "$requirements"
done
