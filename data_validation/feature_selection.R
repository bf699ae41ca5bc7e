# Genes chosen by CV2, Fano factor or principal components from the cells of a run or any matrix of the same form, as
# feature_selection.py chooses them: same genes, same order. The definitions are explained there.
#
# Run:    Rscript data_validation/feature_selection.R --matrix cells.csv --method cv2 --n-genes 100 --out genes.csv
#         or --run with the folder of a run; --published; --scale, where a matrix's is recognised wrongly
# Reads:  cells.csv (cell, cell_type, then genes), and the scale from run.json of a run
# Writes: a table with columns rank, gene, score
# Needs:  R 4, no packages

USAGE <- paste(
  "Rscript feature_selection.R (--run FOLDER | --matrix CSV) --method cv2|fano|pca --out CSV",
  "[--n-genes 100] [--published | --scale counts|linear|log|scaled]"
)
METHODS <- c("cv2", "fano", "pca")
SCALES <- c("counts", "linear", "log", "scaled")

# as in feature_selection.py and common/
TARGET_SUM <- 1e4
LOG_BOUND <- 30
N_COMPONENTS <- 20
PUBLISHED_COMPONENTS <- 3
PUBLISHED_BINS <- (2:19) / 20
DECIMALS <- 10
TREND_STEPS <- 80

user_error <- function(...) {
  stop(structure(class = c("user_error", "error", "condition"), list(message = paste0(...), call = NULL)))
}

read_cells <- function(path) {
  if (!file.exists(path)) user_error(path, " does not exist: mend the path")
  tryCatch({
    header <- scan(path, what = "", sep = ",", quote = "\"", nlines = 1, quiet = TRUE, encoding = "UTF-8")
    if (!identical(header[1:2], c("cell", "cell_type"))) stop("its columns are not cell, cell_type, then genes")
    columns <- c(list("", ""), rep(list(0), length(header) - 2))
    read <- scan(path, what = columns, sep = ",", quote = "\"", skip = 1, quiet = TRUE, multi.line = FALSE)
    X <- matrix(unlist(read[-(1:2)], use.names = FALSE), ncol = length(header) - 2)
  }, error = function(e) {
    user_error(path, " is no readable table of cells: give the cells.csv of a run (", conditionMessage(e), ")")
  })
  if (length(X) == 0) user_error(path, " holds no cells or no genes: give the cells.csv of a run")
  if (!all(is.finite(X))) user_error(path, " has missing or infinite values: fill them in, or leave these cells out")
  # in single precision, as cells.h5ad has them: values that tie there tie here
  X[] <- readBin(writeBin(c(X), raw(), size = 4), "double", length(X), size = 4)
  colnames(X) <- header[-(1:2)]
  X
}

detect_scale <- function(X) {
  if (any(X < 0)) "scaled" else if (all(X == round(X))) "counts" else if (max(X) <= LOG_BOUND) "log" else "linear"
}

# scale of a run: the outermost one in run.json, which is indented by two; NULL where none is on record
recorded_scale <- function(folder) {
  record <- file.path(folder, "run.json")
  if (!file.exists(record)) {
    user_error(folder, " holds no finished run: make it with python data_generation/garage.py --out ", folder)
  }
  line <- grep("^  \"scale\": \"[a-z]+\"", readLines(record, warn = FALSE), value = TRUE)
  if (length(line)) sub("^  \"scale\": \"([a-z]+)\".*", "\\1", line[1])
}

values_for <- function(method, X, scale, published) {
  if (published || scale == "scaled") return(X)
  if (scale == "counts") {
    library_size <- rowSums(X)
    X <- X * (TARGET_SUM / ifelse(library_size > 0, library_size, 1))
  }
  if (method == "pca") {
    if (scale == "log") X else log1p(X)
  } else {
    if (scale == "log") expm1(X) else X
  }
}

excess_cv2 <- function(mu, variance, expressed) {
  x <- 1 / mu
  y <- variance / mu^2
  x_fit <- x[expressed]
  y_fit <- y[expressed]
  low <- log(min(x_fit)) - 30
  high <- log(max(x_fit)) + 30
  for (step in seq_len(TREND_STEPS)) {
    middle <- (low + high) / 2
    w <- 1 / (x_fit + exp(middle))
    if (mean(y_fit * w^2) > mean(y_fit * w) * mean(w)) low <- middle else high <- middle
  }
  y / (x + exp(low)) / mean(y_fit / (x_fit + exp(low)))
}

binned_dispersion <- function(mu, variance) {
  dispersion <- variance / ifelse(mu > 0, mu, 1e-8)
  bins <- findInterval(mu, quantile(mu, PUBLISHED_BINS)) # closed on the left, unlike cut()
  apart <- abs(dispersion - ave(dispersion, bins, FUN = median))
  spread <- ave(dispersion, bins, FUN = function(d) mad(d, constant = 1)) # R would multiply by 1.4826
  apart / ifelse(spread > 0, spread, 1e-8)
}

components <- function(X, n_components) {
  centred <- sweep(X, 2, colMeans(X))
  wide <- nrow(X) < ncol(X)
  found <- eigen(if (wide) tcrossprod(centred) else crossprod(centred), symmetric = TRUE)
  kept <- head(which(found$values > 1e-9 * found$values[1]), n_components)
  vectors <- found$vectors[, kept, drop = FALSE]
  if (wide) vectors <- sweep(crossprod(centred, vectors), 2, sqrt(found$values[kept]), "/")
  list(values = found$values[kept] / (nrow(X) - 1), loadings = round(vectors, DECIMALS))
}

scores <- function(X, method, published) {
  expressed <- colSums(X != 0) > 0
  n <- nrow(X)
  total <- colSums(X)
  mu <- total / n
  variance <- pmax((n * colSums(X^2) - total^2) / (n * max(n - 1, 1)), 0) # exact for counts, so that equal genes tie
  if (!any(variance > 0)) user_error("no gene varies among these cells: there is nothing to choose by")
  if (method == "pca") {
    found <- components(X, if (published) PUBLISHED_COMPONENTS else N_COMPONENTS)
    score <- if (published) {
      apply(abs(found$loadings), 1, max, 0)
    } else {
      drop(found$loadings^2 %*% found$values)
    }
  } else {
    if (any(X < 0)) {
      user_error(method, " is not defined for negative values: give counts, or choose by --method pca")
    }
    score <- if (method == "cv2") {
      if (published) binned_dispersion(mu, variance) else excess_cv2(mu, variance, expressed)
    } else {
      if (published) -variance * ((n - 1) / n) / (mu + 1e-12) else variance / mu
    }
  }
  score[!expressed] <- NA
  score
}

parse <- function(words) {
  args <- list(published = FALSE, `n-genes` = "100")
  while (length(words)) {
    name <- sub("^--", "", words[1])
    if (name == "published") {
      args$published <- TRUE
      words <- words[-1]
      next
    }
    if (!name %in% c("run", "matrix", "method", "out", "n-genes", "scale") || !startsWith(words[1], "--")) {
      user_error("there is no flag ", words[1], ": ", USAGE)
    }
    if (length(words) < 2 || startsWith(words[2], "--")) user_error(words[1], " needs a value: ", USAGE)
    args[[name]] <- words[2]
    words <- words[-(1:2)]
  }
  if (is.null(args$run) == is.null(args$matrix)) user_error("give one of --run and --matrix: ", USAGE)
  if (is.null(args$out)) user_error("--out is missing: ", USAGE)
  if (!isTRUE(args$method %in% METHODS)) user_error("--method is one of ", toString(METHODS), ": ", USAGE)
  if (!is.null(args$scale) && !args$scale %in% SCALES) user_error("--scale is one of ", toString(SCALES), ": ", USAGE)
  if (!is.null(args$scale) && args$published) {
    user_error("--published takes the values as they come, on whatever scale: leave out --scale")
  }
  args
}

main <- function(words) {
  if (any(words %in% c("--help", "-h"))) return(cat(USAGE, "\n", sep = ""))
  args <- parse(words)
  scale <- args$scale
  if (is.null(scale) && !is.null(args$run)) scale <- recorded_scale(args$run)
  X <- read_cells(if (is.null(args$run)) args$matrix else file.path(args$run, "cells.csv"))
  if (is.null(scale)) scale <- detect_scale(X)
  score <- scores(values_for(args$method, X, scale, args$published), args$method, args$published)
  n_genes <- suppressWarnings(as.numeric(args$`n-genes`))
  n_expressed <- sum(!is.na(score))
  if (!n_genes %in% seq_len(n_expressed)) {
    user_error("--n-genes is ", args$`n-genes`, ", but ", n_expressed, " genes are expressed: give 1 to ", n_expressed)
  }
  best <- order(-signif(score, 10))[seq_len(n_genes)] # stable; NA comes last; what differs in the last bits is a tie
  table <- data.frame(rank = seq_len(n_genes), gene = colnames(X)[best], score = score[best])
  part <- file.path(dirname(args$out), paste0(".", basename(args$out), ".part")) # the table appears whole or not at all
  tryCatch(suppressWarnings({
    dir.create(dirname(args$out), recursive = TRUE)
    write.csv(table, part, row.names = FALSE)
    stopifnot(file.rename(part, args$out))
  }), error = function(e) user_error("cannot write ", args$out, ": choose a folder you can write to with --out"))
  cat("wrote", args$out, "\n")
}

if (sys.nframe() == 0) {
  tryCatch(main(commandArgs(trailingOnly = TRUE)), user_error = function(e) {
    message("error: ", gsub("\\s+", " ", conditionMessage(e)))
    quit(status = 2)
  })
}
