# Quantized models as part of a CMake build (3.20 or newer):
#
#   find_program(PTQ_EXECUTABLE ptq REQUIRED)
#   execute_process(COMMAND ${PTQ_EXECUTABLE} --cmakedir OUTPUT_VARIABLE ptq_dir OUTPUT_STRIP_TRAILING_WHITESPACE
#     COMMAND_ERROR_IS_FATAL ANY)
#   include(${ptq_dir}/ptq.cmake)
#   ptq_quantize(TARGET net_int8 MODEL net.onnx DATA calib.npz)
#   add_executable(app main.cc)
#   add_dependencies(app net_int8)
#
# ptq_quantize(TARGET name MODEL file DATA file-or-folder
#              [OUTPUT file] [RECIPE file] [CACHE folder] [OPTIONS option...] [DEPENDS file...])
#
#   TARGET   is built by default. Its property PTQ_OUTPUT is the quantized model's path, for others to use:
#            $<TARGET_PROPERTY:name,PTQ_OUTPUT>. Whatever reads the file also says add_dependencies(... name), or two
#            jobs of a parallel make could write it at once.
#   MODEL, DATA, RECIPE, DEPENDS   are relative to the current source folder, OUTPUT to the current binary folder.
#   OUTPUT   default: MODEL's name with .int8.onnx. Its card is beside it: OUTPUT.card.json, OUTPUT.card.md.
#   CACHE    relative to the binary folder; default: what the environment variable PTQ_CACHE names while building.
#   OPTIONS  of `ptq quantize`, goals among them. An error or a missed goal fails the build.
#   DEPENDS  what else the result depends on: external data of the model, files that OPTIONS name.
include_guard(GLOBAL)
find_program(PTQ_EXECUTABLE ptq REQUIRED)

function(ptq_quantize)
  cmake_parse_arguments(PARSE_ARGV 0 arg "" "TARGET;MODEL;DATA;OUTPUT;RECIPE;CACHE" "OPTIONS;DEPENDS")
  foreach(name TARGET MODEL DATA)
    if(NOT arg_${name})
      message(FATAL_ERROR "ptq_quantize: ${name} is missing; expected ptq_quantize(TARGET name MODEL file DATA file)")
    endif()
  endforeach()
  if(arg_UNPARSED_ARGUMENTS OR arg_KEYWORDS_MISSING_VALUES)
    message(FATAL_ERROR "ptq_quantize(TARGET ${arg_TARGET}): expected keywords with values, found "
      "${arg_UNPARSED_ARGUMENTS} ${arg_KEYWORDS_MISSING_VALUES}; see ptq.cmake")
  endif()

  if(NOT arg_OUTPUT)
    cmake_path(GET arg_MODEL STEM LAST_ONLY stem)
    set(arg_OUTPUT "${stem}.int8.onnx")
  endif()
  foreach(name MODEL DATA RECIPE DEPENDS)
    set(paths "")
    foreach(path IN LISTS arg_${name})
      cmake_path(ABSOLUTE_PATH path NORMALIZE)
      list(APPEND paths "${path}")
    endforeach()
    set(arg_${name} "${paths}")
  endforeach()
  cmake_path(ABSOLUTE_PATH arg_OUTPUT BASE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}" NORMALIZE)

  set(command "${PTQ_EXECUTABLE}" quantize "${arg_MODEL}" --data "${arg_DATA}" -o "${arg_OUTPUT}")
  if(arg_RECIPE)
    list(APPEND command --recipe "${arg_RECIPE}")
  endif()
  if(arg_CACHE)
    cmake_path(ABSOLUTE_PATH arg_CACHE BASE_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}" NORMALIZE)
    list(APPEND command --cache "${arg_CACHE}")
  endif()
  if(IS_DIRECTORY "${arg_DATA}")  # a folder's time says nothing of its files, theirs nothing of those that came or went
    file(GLOB_RECURSE samples CONFIGURE_DEPENDS LIST_DIRECTORIES false "${arg_DATA}/*")
    set(list "${CMAKE_CURRENT_BINARY_DIR}/${arg_TARGET}.samples")
    file(CONFIGURE OUTPUT "${list}" CONTENT "${samples}" @ONLY)
    list(APPEND arg_DEPENDS ${samples} "${list}")
  else()
    list(APPEND arg_DEPENDS "${arg_DATA}")
  endif()

  cmake_path(GET arg_OUTPUT PARENT_PATH folder)
  file(MAKE_DIRECTORY "${folder}")
  add_custom_command(
    OUTPUT "${arg_OUTPUT}"
    BYPRODUCTS "${arg_OUTPUT}.card.json" "${arg_OUTPUT}.card.md" "${arg_OUTPUT}.bench.json"
    COMMAND ${command} ${arg_OPTIONS}
    DEPENDS "${arg_MODEL}" ${arg_RECIPE} ${arg_DEPENDS} "${PTQ_EXECUTABLE}"
    COMMENT "Quantizing ${arg_MODEL}"
    VERBATIM)
  add_custom_target(${arg_TARGET} ALL DEPENDS "${arg_OUTPUT}")
  set_target_properties(${arg_TARGET} PROPERTIES PTQ_OUTPUT "${arg_OUTPUT}")
endfunction()
