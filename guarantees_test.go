package todevicemodule

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const guaranteesFile = "docs/guarantees.md"

// testFunctions parses the Go files of a directory, whatever their build tags, and returns their functions by file and name.
func testFunctions(t *testing.T, dir string) map[string]map[string]*ast.FuncDecl {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	functions := make(map[string]map[string]*ast.FuncDecl)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		functions[file] = make(map[string]*ast.FuncDecl)
		for _, declaration := range parsed.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil {
				functions[file][f.Name.Name] = f
			}
		}
	}
	return functions
}

// names returns every name in the body of a function, those of packages before a dot included.
func names(f *ast.FuncDecl) (found []string) {
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.Ident:
			found = append(found, n.Name)
		case *ast.SelectorExpr:
			if left, ok := n.X.(*ast.Ident); ok {
				found = append(found, left.Name+"."+n.Sel.Name)
			}
		}
		return true
	})
	return found
}

// databasesOf returns what the column of a test says: by the helpers that run it on each database, by itself or in a function that it
// calls, by the directory, or by the one database that it names itself.
func databasesOf(functions map[string]map[string]*ast.FuncDecl, file, test string) string {
	seen := map[string]bool{}
	var reaches func(f *ast.FuncDecl) bool
	reaches = func(f *ast.FuncDecl) bool {
		for _, name := range names(f) {
			if name == "onBoth" || name == "onEach" || name == "testdb.Each" {
				return true
			}
			if seen[name] {
				continue
			}
			seen[name] = true
			for _, others := range functions {
				if called := others[name]; called != nil && reaches(called) {
					return true
				}
			}
		}
		return false
	}
	own := names(functions[file][test])
	switch dir := filepath.ToSlash(filepath.Dir(file)); {
	case reaches(functions[file][test]):
		return "both"
	case dir == "storage/postgres", slices.Contains(own, "Postgres"):
		return "PostgreSQL"
	case dir == "storage/sqlite", slices.Contains(own, "SQLite"):
		return "SQLite"
	default:
		return "none"
	}
}

// Every promise has tests on both databases, and each test that is named is where the document says, on what it says.
func TestGuaranteesNameTestsThatExist(t *testing.T) {
	const promises = 12
	directories := map[string]map[string]map[string]*ast.FuncDecl{}
	parts := strings.Split(readText(t, guaranteesFile), "\n## ")
	promised := 0
	for _, part := range parts {
		title, text, _ := strings.Cut(part, "\n")
		rows := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| `([^`]+)` \\| (.+) \\|$").FindAllStringSubmatch(text, -1)
		if lines := strings.Count(text, "\n| ") - 1; lines >= 0 && lines != len(rows) { // the first is the head
			t.Errorf("%s: %d of %d rows can be read", title, len(rows), lines)
		}
		if strings.HasPrefix(title, "I") {
			if promised++; !strings.HasPrefix(title, fmt.Sprintf("I%d: ", promised)) {
				t.Errorf("want the promise I%d, got %q", promised, title)
			}
		} else if len(rows) > 0 {
			t.Errorf("%s is no promise and has tests", title)
		}
		shown := map[string]bool{}
		for _, row := range rows {
			test, file, databases := row[1], filepath.FromSlash(row[2]), row[3]
			dir := filepath.Dir(file)
			if directories[dir] == nil {
				directories[dir] = testFunctions(t, dir)
			}
			if directories[dir][file][test] == nil || !strings.HasPrefix(test, "Test") || !strings.HasSuffix(file, "_test.go") {
				t.Errorf("%s: there is no test %s in %s", title, test, file)
				continue
			}
			if is := databasesOf(directories[dir], file, test); is != databases {
				t.Errorf("%s: %s in %s has %q as its databases, want %q", title, test, file, databases, is)
			}
			shown["PostgreSQL"] = shown["PostgreSQL"] || databases == "both" || databases == "PostgreSQL"
			shown["SQLite"] = shown["SQLite"] || databases == "both" || databases == "SQLite"
		}
		if strings.HasPrefix(title, "I") && (!shown["PostgreSQL"] || !shown["SQLite"]) {
			t.Errorf("%s is not shown on both databases", title)
		}
	}
	if promised != promises {
		t.Errorf("there are %d promises, want %d", promised, promises)
	}
}

// What the document says of settings, commands and other documents is so.
func TestGuaranteesNameWhatExists(t *testing.T) {
	text := readText(t, guaranteesFile)
	keys := configKeys()
	named := 0
	for _, code := range inCode(text) {
		if slices.Contains(keys, code) {
			named++
		} else if strings.HasPrefix(code, "limits.") {
			t.Errorf("%s names %s, which is no key of to_device", guaranteesFile, code)
		}
	}
	if named < 8 {
		t.Errorf("only %d keys were found", named)
	}
	makefile := readText(t, "Makefile")
	for _, target := range regexp.MustCompile("`make ([a-z-]+)`").FindAllStringSubmatch(text, -1) {
		if !strings.Contains(makefile, "\n"+target[1]+": ") {
			t.Errorf("%s names make %s, which does not exist", guaranteesFile, target[1])
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllStringSubmatch(text, -1) {
		if _, err := os.Stat(filepath.Join("docs", link[1])); err != nil {
			t.Error(err)
		}
	}
	if !strings.Contains(readme(t), "("+guaranteesFile+")") {
		t.Errorf("the README does not link %s", guaranteesFile)
	}
}
