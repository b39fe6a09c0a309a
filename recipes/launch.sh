# Sourced by every run.sh: `launch OVERRIDES` runs verl's trainer, and DRY_RUN says what else to do with them.
#
#   DRY_RUN=cpu      two real training steps on this machine's CPU with a tiny policy; see dry_run.py
#   DRY_RUN=print    print the arguments of verl's trainer, one a line
#
# RECIPE is the folder of the script that sources this. Variables: PYTHON.
PYTHON=${PYTHON:-python3}
RECIPES=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

fail() { echo "$(basename "$RECIPE"): $*" >&2; exit 1; }

# is_override WORD: whether it is for Hydra, so that the method before it may be left out.
is_override() {
    case $1 in
        *=* | -* | "~"*) return 0 ;;
        *) return 1 ;;
    esac
}

# one_of VALUE ALLOWED...: stop with a message if VALUE is none of them.
one_of() {
    local value=$1 allowed
    shift
    for allowed in "$@"; do
        [ "$value" = "$allowed" ] && return
    done
    fail "no method '$value'; expected one of: $*"
}

launch() {
    case ${DRY_RUN:-} in
        "") exec "$PYTHON" -m verl.trainer.main_ppo "$@" ;;
        cpu) exec "$PYTHON" "$RECIPES/dry_run.py" "$(basename "$RECIPE")" "$@" ;;
        print) printf '%s\n' "$@" ;;
        *) fail "DRY_RUN=$DRY_RUN, expected cpu, print or nothing" ;;
    esac
}
