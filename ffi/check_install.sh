#!/usr/bin/env bash
# Programs against an installed tree, as a user builds them: with the compiler alone, by pkg-config, with CMake. And what
# the shared library says of itself: its name, and exactly the header's symbols, each with a version.
#
#   ffi/check_install.sh PREFIX SONAME SYMBOL...
set -euo pipefail
prefix=$1 soname=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
library=$prefix/lib/libgradus_c.so

readelf -d "$library" | grep -q "Library soname: \[$soname\]" || { echo "$library: its soname is not $soname"; exit 1; }
readelf --dyn-syms --wide "$library" | awk '$5 == "GLOBAL" && $7 != "UND" && $4 == "FUNC" {print $8}' | sort > "$work/is"
printf "%s@@GRADUS_${soname#libgradus_c.so.}\\n" "$@" | sort > "$work/expected"
diff "$work/expected" "$work/is" || { echo "$library: expected the symbols marked <, got those marked >"; exit 1; }

source=$here/examples/grpo.c
cc=${CC:-cc}
"$cc" -I"$prefix/include" "$source" -L"$prefix/lib" -Wl,-rpath,"$prefix/lib" -lgradus_c -lm -o "$work/plain"
export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
read -ra flags <<< "$(pkg-config --cflags --libs gradus)"
"$cc" "$source" "${flags[@]}" -Wl,-rpath,"$prefix/lib" -lm -o "$work/pkg-config"
read -ra flags <<< "$(pkg-config --cflags --libs --static gradus | sed 's/-lgradus_c/-l:libgradus_c.a/')"
"$cc" "$source" "${flags[@]}" -o "$work/static"
programs=(plain pkg-config static)
if command -v cmake > /dev/null; then
  cmake -S "$here/examples" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix" > /dev/null
  cmake --build "$work/build" > /dev/null
  programs+=(build/grpo build/grpo_static)
  # A version that this one is not.
  mkdir "$work/later"
  printf 'cmake_minimum_required(VERSION 3.16)\nproject(p C)\nfind_package(gradus 0.2 REQUIRED)\n' > "$work/later/CMakeLists.txt"
  if cmake -S "$work/later" -B "$work/later/build" -DCMAKE_PREFIX_PATH="$prefix" > /dev/null 2>&1; then
    echo "CMake took this version for 0.2"
    exit 1
  fi
fi
"$work/plain" cpu > "$work/expected"
for program in "${programs[@]}"; do
  "$work/$program" cpu | diff "$work/expected" - || { echo "$program: another output"; exit 1; }
done
needed=$(readelf -d "$work/plain" | grep -c "NEEDED.*\[$soname\]")
[ "$needed" = 1 ] || { echo "a program asks for another library than $soname"; exit 1; }
echo "$soname: $# symbols, $(stat -Lc %s "$library") bytes; programs run: ${programs[*]}"
