# Sourced by the launchers that command a cloud from this machine. They set `dry_run` to 1 to have
# commands printed instead of run.
# shellcheck shell=bash

# Ends with one line that says what is wrong; `self` is who says it.
fail() {
  echo "error: ${self:-$(basename "$0")}: $*" >&2
  exit 2
}

say() { echo "# $*"; }

# Prints words so that a shell reads them as they are.
quote() {
  local word words=()
  for word in "$@"; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
      words+=("$word")
    elif [[ $word =~ ^(--[a-z_-]+=)(.*)$ ]]; then
      words+=("${BASH_REMATCH[1]}${BASH_REMATCH[2]@Q}")
    else
      words+=("${word@Q}")
    fi
  done
  echo "${words[*]}"
}

# Prints a command and, unless this is a dry run, runs it.
run() {
  quote "$@"
  if [[ -z ${dry_run:-} ]]; then "$@"; fi
}

# need_command NAME HOW: ends unless this machine has the command NAME; a dry run needs none.
need_command() {
  [[ -n ${dry_run:-} ]] || command -v "$1" >/dev/null || fail "$1 is not installed: $2"
}

# need_option NAME VALUE WHAT: ends if the option was not given.
need_option() {
  [[ -n $2 ]] || fail "--$1=$3 is missing"
}

# The value of --NAME=VALUE among the words behind it; empty if there is none.
flag_value() {
  local name=$1 word value=
  shift
  for word in "$@"; do
    case $word in "--$name="*) value=${word#*=} ;; esac
  done
  echo "$value"
}

# check_training_flags REPOSITORY FLAGS...: ends unless --config and --workdir are there and the
# recipe exists.
check_training_flags() {
  local repository=$1 recipe
  shift
  case " $* " in *" --dry-run "*) fail "--dry-run is not a training flag: put it before --" ;; esac
  recipe=$(flag_value config "$@")
  need_option config "$recipe" "RECIPE, among the training flags behind --,"
  need_option workdir "$(flag_value workdir "$@")" "DIR, among the training flags behind --,"
  if [[ $recipe == *.py ]]; then
    [[ -f $recipe ]] || fail "--config=$recipe: no such file"
  else
    [[ -f $repository/configs/$recipe.py ]] || fail "--config=$recipe: no recipe of that name in $repository/configs"
  fi
}

# check_recipe REPOSITORY FLAGS...: before anything is paid for, ends unless the recipe is valid with
# these flags; only where bertjax is installed here.
check_recipe() {
  local python=$1/.venv/bin/python message
  shift
  if [[ ! -x $python ]]; then python=python3; fi
  if [[ -z ${dry_run:-} ]] && "$python" -c 'import bertjax, absl' 2>/dev/null; then
    message=$("$python" -m bertjax.train "$@" --print_config 2>&1 >/dev/null) ||
      fail "the training flags: ${message##*error: }"
  fi
}
